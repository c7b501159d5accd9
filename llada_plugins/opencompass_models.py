"""LLaDA models in stock OpenCompass.

In a config: `from llada_plugins.opencompass_models import LLaDA`, then `type=LLaDA`.
These classes translate templates, stop words and results; every answer and every number
is Engine's. Module-level imports stay few: mmengine reports an ImportError in here as
"LLaDA is not in the registry". Not for lm-eval (lmeval_models.py) nor for decoding
itself.
"""

from __future__ import annotations

import inspect
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from opencompass.models.base import BaseModel

from llada_plugins.harness.opencompass_tasks import (
    NEEDS_AGENT,
    asking,
    check_dataset,
    dataset_configs,
    infer_task,
    needs_autoregressive,
    repeats,
)
from llada_plugins.harness.opencompass_templates import TemplateParser
from llada_plugins.options.fields import names, reject_unknown

if TYPE_CHECKING:
    import torch
    from opencompass.openicl.icl_retriever import BaseRetriever
    from torch import Tensor

    from llada_plugins.engine.engine import Engine
    from llada_plugins.engine.progress import Progress
    from llada_plugins.engine.request import Completion
    from llada_plugins.harness.opencompass_tasks import Repeats
    from llada_plugins.likelihood.estimate import LogLikelihood
    from llada_plugins.sampling.config import SamplerConfig

logger = logging.getLogger(__name__)

Stream = tuple[tuple[int, ...], ...]  # see engine.Request
Pair = tuple[tuple[int, ...], tuple[int, ...]]  # token ids of a context and of the answer after it
# pairs, and the tokens over which a value is a mean
Score = Callable[[Sequence[Pair], Sequence[int]], "list[LogLikelihood]"]
# of generation_kwargs, beside the sampler's options
GENERATION_NAMES = ("do_sample", "num_beams", "num_return_sequences")
# here path, max_seq_len, and a key that OpenCompass keeps to itself
RENAMED = ("pretrained", "max_length", "batch_size")


class LLaDA(BaseModel):
    """A LLaDA checkpoint for a `models` entry of a stock config.

    path: checkpoint folder, hub id, or None for the tiny model shipped in the package.
    options: any other field of EngineConfig and SamplerConfig, flat (`steps=64,
    block_length=32, …`); unknown names raise ValueError. An explicit gen_length decides
    the answer's length, else the data set's max_out_len does. chat: render HUMAN/BOT
    turns through the tokenizer's chat template, for instruct models; off, the turns are
    joined by newlines or wrapped by meta_template. stop_words: end an answer at the
    earliest of these and of the data set's stopping_criteria. record_stats: predictions
    become dicts with prediction, nfe, seconds, tokens and prm_calls; the entry then
    needs `pred_postprocessor=dict(type=unwrap_prediction)`. generation_kwargs:
    num_return_sequences only, for evaluators that read lists. tokenizer_only: prompts
    can be rendered and counted, nothing more. Samples of one prompt are numbered
    through the data set, and copies of it told apart by the number at the end of their
    abbr: they depend on no batch, order, split or resume. Several calls at once, from
    stock inferencers' threads, wait for each other. The entry's batch_size, which
    OpenCompass keeps to itself, is the number of rows of one forward pass, of answers
    and of masked copies in a likelihood alike.
    """

    method = "llada"
    engine: Engine

    def __init__(
        self,
        path: str | None = None,
        *,
        chat: bool = False,
        stop_words: Sequence[str] = (),
        record_stats: bool = False,
        max_seq_len: int | None = None,
        meta_template: Mapping[str, Any] | None = None,
        generation_kwargs: Mapping[str, Any] | None = None,
        tokenizer_only: bool = False,
        **options: Any,
    ) -> None:
        from llada_plugins.engine.engine import Engine, option_classes
        from llada_plugins.engine.notices import WarnOnce
        from llada_plugins.models import text
        from llada_plugins.models.folder import resolve

        own = [
            name
            for name in inspect.signature(LLaDA.__init__).parameters
            if name not in ("self", "options")
        ]
        reject_unknown(
            options,
            own + [name for name in names(*option_classes(self.method)) if name not in RENAMED],
            elsewhere=["batch_size"],
        )
        if meta_template and (chat or record_stats):
            other, reason = "record_stats", "OpenCompass then cuts predictions as plain strings"
            if chat:
                other, reason = "chat", "both wrap the turns"
            raise ValueError(f"meta_template and {other} exclude each other: {reason}")
        _check_generation_kwargs(generation_kwargs or {})
        self.num_answers = _num_answers(generation_kwargs or {})
        for dataset in dataset_configs():
            check_dataset(dataset, self.num_answers)
        _join_process_group()
        if max_seq_len is not None:
            options["max_length"] = max_seq_len
        if tokenizer_only:
            # what a caller that renders and counts prompts does not ask
            self.engine = None  # type: ignore[assignment]
            self.tokenizer = text.load_tokenizer(
                resolve(options.get("tokenizer") or path), options.get("chat_template")
            )
        else:
            self.engine = Engine(self.method, pretrained=path, **options)
            self.tokenizer = self.engine.tokenizer
            max_seq_len = self.engine.max_length
        super().__init__(
            path=path,
            max_seq_len=max_seq_len,
            tokenizer_only=tokenizer_only,
            meta_template=meta_template,
            generation_kwargs=dict(generation_kwargs or {}),
        )
        self.template_parser = TemplateParser(
            self.tokenizer, chat=chat, meta_template=meta_template
        )
        self.record_stats = record_stats
        self.stop_words = (stop_words,) if isinstance(stop_words, str) else tuple(stop_words)
        self._score: Score = self._estimated
        self._bar: Progress | None = None
        self._repeats: tuple[BaseRetriever, Repeats] | None = None  # of the data set that is asked
        self._lock = threading.RLock()  # stock inferencers may ask from a pool of threads
        self._warnings = WarnOnce(logger)

    def get_token_len(self, prompt: str) -> int:
        """Tokens of a rendered prompt."""
        return len(self._ids(prompt))

    def encode(self, prompt: str) -> Tensor:
        """(1, L) token ids of a rendered prompt."""
        import torch

        return torch.tensor([self._ids(prompt)], dtype=torch.long)

    def decode(self, tokens: Tensor) -> str:
        """The text of (L,) or (1, L) token ids; a BOS that `encode` adds again is left out."""
        ids = tokens.reshape(-1).tolist()
        string = self.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        assert isinstance(string, str)
        bare = string.removeprefix(self.tokenizer.bos_token or "")
        return bare if self._ids(bare) == ids else string

    def sync_inputs(self, inputs: Any) -> Any:
        """The prompts of rank 0, on every rank.

        As they are, where stock code would send their tokens and cut them.
        """
        from mmengine import dist

        prompts = [inputs]
        dist.broadcast_object_list(prompts, src=0)
        return prompts[0]

    def to(self, device: str | torch.device) -> None:
        """Move the checkpoint; refused for a method with further parts."""
        if self.method != "llada":
            raise ValueError(
                f"{type(self).__name__} has parts beside the model, which stay where they were "
                f"loaded: write device={str(device)!r} in the model's entry"
            )
        self.engine.model.to(device)

    def generate(
        self,
        inputs: Sequence[str],
        max_out_len: int,
        stopping_criteria: Sequence[str] = (),
        min_out_len: int | None = None,
        **generation_kwargs: Any,
    ) -> list[str | dict[str, Any]]:
        """The answers, in the order of the prompts; with num_return_sequences=n, n in a
        row for each prompt.

        generation_kwargs: of inferencers that pass their own; sampler options,
        do_sample, and num_return_sequences for this call. Asked by a stock inferencer,
        every row, repeat of a row and sample gets an answer of its own; equal prompts
        of a direct call get equal answers.
        """
        if min_out_len:
            self._warnings.warn(
                f"min_out_len={min_out_len} has no effect: every answer has gen_length tokens; "
                "logits_eos_inf=True forbids EOS"
            )
        number = _num_answers(generation_kwargs, default=self.num_answers)
        sampler = self.engine.sampler_for(
            _sampler_options(generation_kwargs, self.engine.given), max_out_len
        )
        until = tuple(dict.fromkeys([*self.stop_words, *stopping_criteria]))
        with self._lock:
            asked = [
                (prompt, stream)
                for prompt, streams in zip(inputs, self._streams(inputs, sampler, number))
                for stream in streams
            ]
            answers = self._answers(list(dict.fromkeys(asked)), sampler, until)
            for _ in range(len(asked) - len(answers)):
                self._progress().add()  # repeats within the call
        return [answers[each] for each in asked]

    def _answers(
        self, asked: Sequence[tuple[str, Stream]], sampler: SamplerConfig, until: tuple[str, ...]
    ) -> dict[tuple[str, Stream], str | dict[str, Any]]:
        """The answer to each different pair of prompt and stream."""
        from llada_plugins.engine.engine import Request

        requests = [Request(prompt, sampler, until, stream=stream) for prompt, stream in asked]
        answers: dict[tuple[str, Stream], str | dict[str, Any]] = {}
        bar = self._progress()
        for index, completion in self.engine.generate(requests, len(requests)):
            answers[asked[index]] = self._prediction(completion)
            bar.add(completion.num_tokens)
        return answers

    def _streams(
        self, inputs: Sequence[str], sampler: SamplerConfig, number: int
    ) -> list[list[Stream]]:
        """What tells the random numbers of `number` answers to each prompt apart.

        That is which asking of the prompt each is. They are numbered as if the whole data
        set were asked in one call of the engine; copies of a data set have their names
        besides.
        """
        now = asking(self)
        chance = self.engine.draws(sampler)
        if now is None or not chance:
            self._check_direct(inputs, chance)
            return [[_stream(sample) for sample in range(number)]] * len(inputs)
        if self._repeats is None or self._repeats[0] is not now.retriever:
            self._repeats = now.retriever, repeats(now)
        copy, numbers = self._repeats[1]
        first = [
            (numbers[now.row + place] * now.samples + now.sample) * number
            for place in range(len(inputs))
        ]
        return [[_stream(begin + sample, copy) for sample in range(number)] for begin in first]

    def _check_direct(self, inputs: Sequence[str], chance: bool) -> None:
        """Refuse, within a task, that equal prompts get equal answers; elsewhere say so once.

        So it is where their places in a data set are unknown.
        """
        if chance and infer_task() is not None:
            raise ValueError(
                "this inferencer does not say which row of the data set it asks for, so that "
                "sampling would give equal answers to equal prompts: use GenInferencer, or decode "
                "without chance (temperature=0)"
            )
        if chance and len(set(inputs)) < len(inputs):
            self._warnings.warn(
                "equal prompts of a direct call get equal answers: for n samples of each pass "
                "num_return_sequences=n"
            )

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
            pairs.append(
                self.engine.encode_pair(*split)
                if split
                else self._whole(self.parse_template(template, "ppl"))
            )
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
        parts = [self._labelled(*each) for each in zip(inputs, label, given)]
        values = iter(self._log_likelihood([pair for pairs in parts for pair in pairs]))
        losses = [-float(sum(next(values) for _ in pairs)) for pairs in parts]
        return losses, [sum(len(answer) for _, answer in pairs) for pairs in parts]

    def get_loglikelihood(self, inputs: Sequence[str], conts: Sequence[str]) -> np.ndarray:
        """Log-likelihood (nats) of each text's ending `cont` given the rest; the largest wins."""
        for string, cont in zip(inputs, conts):
            if not cont or not string.endswith(cont):
                raise ValueError(
                    f"a prompt must end with its column 'cont', {cont[:40]!r}; it ends with "
                    f"{string[-40:]!r}"
                )
        split = ((string[: -len(cont)], cont) for string, cont in zip(inputs, conts))
        return self._log_likelihood([self.engine.encode_pair(*texts) for texts in split])

    def get_logits(self, inputs: Sequence[str]) -> None:
        """Refused: CLPInferencer asks for it."""
        raise ValueError(needs_autoregressive("CLPInferencer"))

    def get_mink_percent(self, inputs: Sequence[str], k: int = 20) -> None:
        """Refused: MinKPercentInferencer asks for it."""
        raise ValueError(needs_autoregressive("MinKPercentInferencer"))

    def choice(self, inputs: Sequence[Any], choices: Sequence[str]) -> None:
        """Refused: GLMChoiceInferencer asks for it."""
        raise ValueError(needs_autoregressive("GLMChoiceInferencer"))

    @property
    def model(self) -> None:
        """Refused: SWCELossInferencer asks for it."""
        raise ValueError(needs_autoregressive("SWCELossInferencer"))

    @property
    def agent(self) -> None:
        """Refused: AgentInferencer asks for it."""
        raise ValueError(NEEDS_AGENT)

    def _ids(self, string: str) -> list[int]:
        from llada_plugins.models import text

        return text.encode(self.tokenizer, string)

    def _labelled(
        self, string: str, label: Sequence[Sequence[int]], given: int
    ) -> list[tuple[list[int], list[int]]]:
        """The token pairs of the labelled parts of a text; parts that touch are one."""
        from llada_plugins.models import text

        ids, spans = text.encode_with_spans(self.tokenizer, string)
        scored = [
            number
            for number, (begin, end) in enumerate(spans)
            if number >= given
            and begin < end
            and any(begin < right and left < end for left, right, *_ in label)
        ]
        runs = [
            [place for _, place in run]
            for _, run in groupby(enumerate(scored), lambda pair: pair[1] - pair[0])
        ]
        bos = self.tokenizer.bos_token_id
        prefix = [] if bos is None or ids[:1] == [bos] else [bos]
        return [(prefix + ids[: run[0]], ids[run[0] : run[-1] + 1]) for run in runs]

    def _whole(self, string: str) -> tuple[list[int], list[int]]:
        ids = self.engine.encode(string)
        bos = self.tokenizer.bos_token_id
        if bos is None:
            return [], ids
        return [bos], ids[1:] if ids[:1] == [bos] else ids

    def _mean_nll(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> np.ndarray:
        units = [self.engine.overlong.num_scored(len(answer)) for _, answer in pairs]
        return -self._log_likelihood(pairs, units)

    def _log_likelihood(
        self,
        pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
        units: Sequence[int] | None = None,
    ) -> np.ndarray:
        """Nats per unit (1 by default) of each pair."""
        units = units or [1] * len(pairs)
        found = self._score([(tuple(context), tuple(answer)) for context, answer in pairs], units)
        return np.array([estimate.value / unit for estimate, unit in zip(found, units)])

    @contextmanager
    def scored_by(self, score: Score) -> Iterator[None]:
        """Within it all likelihoods are those of `score`.

        That gets token pairs and the units of their values.
        """
        self._score = score
        try:
            yield
        finally:
            self._score = self._estimated

    def estimates(self, pairs: Sequence[Pair], batch_size: int) -> dict[Pair, LogLikelihood]:
        """The engine's estimates of different pairs, made together.

        batch_size: rows of one forward pass.
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

    def _prediction(self, completion: Completion) -> str | dict[str, Any]:
        if not self.record_stats:
            return completion.text
        return {
            "prediction": completion.text,
            "nfe": completion.num_forwards,
            "seconds": round(completion.seconds, 4),
            "tokens": completion.num_tokens,
            "prm_calls": completion.num_prm_calls,
            "overlong": completion.overlong,
        }

    def _progress(self) -> Progress:
        from mmengine import dist

        from llada_plugins.engine.progress import progress

        # one line for the task: OpenCompass' own bar counts batches and knows the end
        if self._bar is None:
            self._bar = progress(None, type(self).__name__, disable=not dist.is_main_process())
        return self._bar


class LLaDAUPS(LLaDA):
    """Learned remasking (RemeDi): the baseline's options and `ups`, the folder of a policy head."""

    method = "llada_ups"


class LLaDAALA(LLaDA):
    """Routed seeds (ALA): the baseline's options and `router`, the folder of a router.

    Likelihoods are those of the routed denoiser, which is another model of the answer:
    they do not compare decoders of one model.
    """

    method = "llada_ala"


class LLaDAPRM(LLaDA):
    """Process-reward candidates and back-masking (LLaDA-R3): the baseline's options,
    those of ReviewConfig and PRMConfig.

    method: vanilla, backmask or window. Likelihoods are the baseline's: a process
    reward model changes decoding only.
    """

    method = "llada_prm"


def unwrap_prediction(prediction: str | Mapping[str, Any]) -> str:
    """The text of a prediction recorded with its statistics.

    For `pred_postprocessor` of a model entry with record_stats=True.
    """
    return prediction if isinstance(prediction, str) else prediction["prediction"]


def _stream(number: int, copy: str = "") -> Stream:
    """Of the asking of a prompt with that number; copy: the data set's name if it is one.

    The first asking of all has the engine's plain stream.
    """
    if copy:
        return (number,), tuple(copy.encode())
    return ((number,),) if number else ()


def _num_answers(generation_kwargs: Mapping[str, Any], default: int = 1) -> int:
    number = generation_kwargs.get("num_return_sequences", default)
    if not isinstance(number, int) or number < 1:
        raise ValueError(f"num_return_sequences must be a whole number, at least 1, got {number!r}")
    return number


def _check_generation_kwargs(generation_kwargs: Mapping[str, Any]) -> None:
    others = [name for name in generation_kwargs if name != "num_return_sequences"]
    if others:
        raise ValueError(
            f"generation_kwargs takes num_return_sequences only, got {', '.join(others)}: "
            "write sampler options flat in the model's entry"
        )


def _sampler_options(
    generation_kwargs: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The sampler's options of an inferencer's generation_kwargs; given: the model's own.

    do_sample=False is greedy, whatever else is listed; do_sample=True without a
    temperature samples at the model's, else at 1.
    """
    from llada_plugins.sampling.config import SamplerConfig

    reject_unknown(
        generation_kwargs, [*names(SamplerConfig), *GENERATION_NAMES], "generation_kwarg"
    )
    if (beams := generation_kwargs.get("num_beams") or 1) != 1:
        raise ValueError(
            f"num_beams={beams} has no meaning for a diffusion sampler: leave it out or set 1"
        )
    options = {
        name: value for name, value in generation_kwargs.items() if name not in GENERATION_NAMES
    }
    if generation_kwargs.get("do_sample") is False:
        options["temperature"] = 0.0
        options.pop("top_p", None)
        options.pop("top_k", None)
    elif (
        generation_kwargs.get("do_sample")
        and "temperature" not in options
        and not given.get("temperature")
    ):
        options["temperature"] = 1.0
    return options


def _join_process_group() -> None:
    """Make ranks of torchrun (run_cfg.num_procs > 1) known, else all write the same files."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import torch.distributed

        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
