"""Likelihoods in the forms in which stock OpenCompass asks a model for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from . import opencompass_pairs
from .opencompass_tasks import write_predictions_whole
from .opencompass_templates import TemplateParser
from .opencompass_tokens import TokenModel

if TYPE_CHECKING:
    from llada_plugins.engine.engine import Engine
    from llada_plugins.engine.progress import Progress
    from llada_plugins.likelihood.estimate import LogLikelihood

Pair = tuple[tuple[int, ...], tuple[int, ...]]  # token ids of a context and of the answer after it
# pairs, and the tokens over which a value is a mean
Score = Callable[[Sequence[Pair], Sequence[int]], "list[LogLikelihood]"]


class LikelihoodModel(TokenModel):
    """A model that scores what it is given; every number is its engine's."""

    engine: Engine
    template_parser: TemplateParser
    _scorer: Score | None = None  # in place of the engine, see `scored_by`
    _bar: Progress | None = None

    def get_ppl_from_template(
        self, templates: Sequence[Any], mask_length: Sequence[int] | None = None
    ) -> np.ndarray:
        """Mean negative log-likelihood (nats a token) of each template's answer; the smallest wins.

        It is given what precedes it. The answer is the model's last turn. OpenCompass'
        own models average over prompt and answer together, which a masked-diffusion bound
        of the whole text would only blur; published LLaDA scores rank sums over the
        answer (lm-eval's acc), so answers of unequal length may rank differently. A
        template without such a turn is scored as a whole: see `get_ppl`.
        """
        if mask_length is not None:
            return self.get_ppl(self.parse_template(templates, "ppl"), mask_length)
        pairs = []
        for template in templates:
            split = self.template_parser.split(template)
            if split:
                pairs.append(self.engine.encode_pair(*split))
            else:
                pairs.append(self._whole(self.parse_template(template, "ppl")))
        return self._mean_nll(pairs)

    def get_ppl(
        self, inputs: Sequence[str], mask_length: Sequence[int] | None = None
    ) -> np.ndarray:
        """Mean negative log-likelihood (nats a token) of each text.

        All its tokens are masked jointly, after BOS if the tokenizer has one.
        mask_length: tokens at the start of each text that are given, not scored.
        """
        if mask_length is None:
            return self._mean_nll([self._whole(string) for string in inputs])
        encoded = [self.engine.encode(string) for string in inputs]
        return self._mean_nll(
            [(ids[:length], ids[length:]) for ids, length in zip(encoded, mask_length)]
        )

    def get_ppl_tokenwise(
        self,
        inputs: Sequence[str],
        label: Sequence[Sequence[Sequence[int]]],
        mask_length: Sequence[int] | None = None,
    ) -> tuple[list[float], list[int]]:
        """Summed negative log-likelihood (nats) of each text's labelled parts, and their tokens.

        label: for each text its parts as (begin, end, …) in characters. A part is
        scored as a whole given the text before it, which for an autoregressive model is
        the sum over its tokens. mask_length: tokens at the start of each text that are
        never scored.
        """
        given = mask_length if mask_length is not None else [0] * len(inputs)
        parts = [
            opencompass_pairs.labelled(self.tokenizer, *each) for each in zip(inputs, label, given)
        ]
        values = iter(self._log_likelihood([pair for pairs in parts for pair in pairs]))
        losses = [-float(sum(next(values) for _ in pairs)) for pairs in parts]
        return losses, [sum(len(answer) for _, answer in pairs) for pairs in parts]

    def get_loglikelihood(self, inputs: Sequence[str], conts: Sequence[str]) -> np.ndarray:
        """Log-likelihood (nats) of each text's ending `cont` given the rest; the largest wins."""
        texts = [opencompass_pairs.ending(*each) for each in zip(inputs, conts)]
        return self._log_likelihood([self.engine.encode_pair(*split) for split in texts])

    def _whole(self, string: str) -> tuple[list[int], list[int]]:
        return opencompass_pairs.whole(self.tokenizer, self.engine.encode(string))

    def _mean_nll(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> np.ndarray:
        units = [self.engine.overlong.num_scored(len(answer)) for _, answer in pairs]
        return -self._log_likelihood(pairs, units)

    def _log_likelihood(
        self,
        pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
        units: Sequence[int] | None = None,
    ) -> np.ndarray:
        """Nats per unit (1 by default) of each pair."""
        write_predictions_whole(self)
        units = units or [1] * len(pairs)
        score = self._scorer or self._estimated
        found = score([(tuple(context), tuple(answer)) for context, answer in pairs], units)
        return np.array([estimate.value / unit for estimate, unit in zip(found, units)])

    @contextmanager
    def scored_by(self, score: Score) -> Iterator[None]:
        """Within it all likelihoods are those of `score`, which gets token pairs and units."""
        self._scorer = score
        try:
            yield
        finally:
            self._scorer = None

    def estimates(self, pairs: Sequence[Pair], batch_size: int) -> dict[Pair, LogLikelihood]:
        """The engine's estimates of different pairs, made together.

        batch_size: masked rows of one forward.
        """
        found: dict[Pair, LogLikelihood] = {}
        bar = self._progress()
        for number, estimate in self.engine.log_likelihood(pairs, batch_size):
            found[pairs[number]] = estimate
            bar.add()
        return found

    def _estimated(self, pairs: Sequence[Pair], units: Sequence[int]) -> list[LogLikelihood]:
        found = self.estimates(pairs, len(pairs))
        return [found[pair] for pair in pairs]

    def _progress(self) -> Progress:
        """One line for the task: OpenCompass' own bar counts batches and knows the end."""
        from mmengine import dist

        from llada_plugins.engine.progress import progress

        if self._bar is None:
            self._bar = progress(None, type(self).__name__, disable=not dist.is_main_process())
        return self._bar
