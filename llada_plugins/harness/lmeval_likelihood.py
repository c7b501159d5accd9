"""Likelihoods in the forms in which lm-eval asks a model for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from lm_eval.api.instance import Instance

from llada_plugins.engine.progress import Progress, progress
from llada_plugins.likelihood.estimate import LogLikelihood

from .lmeval_likelihood_checks import check_gen_kwargs
from .lmeval_notes import LikelihoodNotes
from .lmeval_options import SeedWarnings, warn_of_drawn_examples
from .lmeval_run import RecordedLM
from .lmeval_windows import rolling_windows, totals

Pair = tuple[Sequence[int], Sequence[int]]  # token ids of a context and of the answer after it


class LikelihoodLM(RecordedLM):
    """A model that scores what it is given; every number is its engine's."""

    method: str
    _seed_warnings: SeedWarnings
    _notes: LikelihoodNotes

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """As lm-eval's own; the requests get notes, see harness/lmeval_notes.py."""
        self._enter_run()
        check_gen_kwargs(self.engine, self._warnings)
        answers = super().loglikelihood(requests, disable_tqdm)
        self._notes.attach(requests)
        return answers

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood bounds of whole texts, which bound perplexity from above."""
        self._enter_run()
        check_gen_kwargs(self.engine, self._warnings)
        texts = [request.args[0] for request in requests]
        longest = min(self.max_length - 1, self.engine.max_answer)
        pairs, owners = rolling_windows(self.engine, texts, self.prefix_token_id, longest)
        values = [0.0] * len(requests)
        estimates = self._estimates("loglikelihood_rolling", pairs, disable_tqdm)
        for number, whole in totals(owners, estimates):
            values[number] = whole.value
            self._keep("loglikelihood_rolling", requests[number].args, whole.value, whole)
        self._notes.attach(requests)
        return values

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, does greedy decoding give it) per request.

        The latter is False unless greedy_check=True, as in LLaDA's published runs.
        """
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        pairs = [(context, continuation) for _, context, continuation in requests]
        config = self.engine.config
        if not config.mc_seed and config.estimator not in ("exact", "chain"):
            self._seed_warnings.warn("likelihoods", "mc_seed")
        for number, estimate in self._estimates("loglikelihood", pairs, disable_tqdm):
            results[number] = (estimate.value, bool(estimate.greedy))
            texts = requests[number][0]
            if texts is not None:
                self._keep("loglikelihood", texts, results[number], estimate)
        return results

    def _estimates(
        self, what: str, pairs: Sequence[Pair], disable_tqdm: bool
    ) -> Iterator[tuple[int, LogLikelihood]]:
        """The Engine's estimates as they come, each a step of the progress line."""
        self._warn_of_processes()
        with closing(self._progress(what, len(pairs), disable_tqdm)) as bar:
            for number, estimate in self.engine.log_likelihood(pairs):
                yield number, estimate
                bar.add(len(pairs[number][1]))

    def _keep(
        self,
        name: str,
        texts: tuple[str, ...],
        answer: float | tuple[float, bool],
        estimate: LogLikelihood,
    ) -> None:
        self.cache_hook.add_partial(name, texts, answer)
        self._notes.keep(texts, estimate)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As lm-eval's own; the context of a question's choices is tokenised once."""
        return self.engine.encode_pair(context, continuation)

    def _warn_of_processes(self) -> None:
        if self.rank == 0 and self.world_size > 1:
            warn_of_drawn_examples(self._warnings)

    def _progress(self, what: str, total: int, disable: bool) -> Progress:
        """The progress line of one call, on the first process alone."""
        return progress(total, f"{self.method} {what}", disable or self.rank != 0)
