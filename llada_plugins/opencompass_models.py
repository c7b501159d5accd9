"""LLaDA models in stock OpenCompass.

In a config: `from llada_plugins.opencompass_models import LLaDA`, then `type=LLaDA`.
These classes translate templates, stop words and results, most of it in
harness/opencompass_*.py; every answer and every number is Engine's. Module-level imports
stay few: mmengine reports an ImportError in here as "LLaDA is not in the registry". Not
for lm-eval (lmeval_models.py) nor for decoding itself.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llada_plugins.harness.opencompass_errors import told_in_one_line
from llada_plugins.harness.opencompass_likelihood import LikelihoodModel
from llada_plugins.harness.opencompass_names import check_names
from llada_plugins.harness.opencompass_options import (
    check_exclusive,
    check_generation_kwargs,
    num_answers,
    of_preset,
    sampler_options,
)
from llada_plugins.harness.opencompass_processes import join_process_group, of_first_rank
from llada_plugins.harness.opencompass_refusals import check_dataset, check_ends
from llada_plugins.harness.opencompass_streams import Streams
from llada_plugins.harness.opencompass_tasks import (
    dataset_configs,
    predictions_file,
    write_predictions_whole,
)
from llada_plugins.harness.opencompass_templates import TemplateParser
from llada_plugins.harness.opencompass_trajectories import place_recorder, with_place
from llada_plugins.harness.stop_strings import stop_strings
from llada_plugins.options.fields import as_flag, names, reject_unknown

if TYPE_CHECKING:
    import torch

    from llada_plugins.engine.request import Completion, QuestionId
    from llada_plugins.harness.opencompass_journal import Journal
    from llada_plugins.harness.opencompass_manifest import TaskManifest
    from llada_plugins.harness.streams import Stream
    from llada_plugins.sampling.config import SamplerConfig

logger = logging.getLogger(__name__)

# here path, max_seq_len, and a key that OpenCompass keeps to itself
RENAMED = ("pretrained", "max_length", "batch_size")


class LLaDA(LikelihoodModel):
    """A LLaDA checkpoint for a `models` entry of a stock config.

    path: checkpoint folder, hub id, or None for the tiny model shipped in the package.
    options: any other field of EngineConfig and SamplerConfig, flat (`steps=64,
    block_length=32, …`); unknown names raise ValueError. An explicit gen_length decides
    the answer's length, else the data set's max_out_len does. preset: a published setting,
    from which path, chat, stop_words and options come that are not given. chat: render
    HUMAN/BOT turns through the tokenizer's chat template, for instruct models; off, the
    turns are joined by newlines or wrapped by meta_template. stop_words: end an answer at
    the earliest of these and of the data set's stopping_criteria. record_stats: predictions
    become dicts with prediction, tokens, forwards (also as nfe), tokens_per_forward,
    revised, seconds, prm_calls and overlong; the entry then needs
    `pred_postprocessor=dict(type=unwrap_prediction)`. generation_kwargs:
    num_return_sequences only, for evaluators that read lists. tokenizer_only: prompts
    can be rendered and counted, nothing more. Samples of one prompt are numbered
    through the data set, and copies of it told apart by the number at the end of their
    abbr: they depend on no batch, order, split or resume. Several calls at once, from
    stock inferencers' threads, wait for each other. The entry's batch_size, which
    OpenCompass keeps to itself, is the number of rows of one forward pass, of answers
    and of masked copies in a likelihood alike.
    """

    method = "llada"

    @told_in_one_line
    def __init__(
        self,
        path: str | None = None,
        *,
        chat: bool | None = None,
        stop_words: Sequence[str] | None = None,
        record_stats: bool = False,
        max_seq_len: int | None = None,
        meta_template: Mapping[str, Any] | None = None,
        generation_kwargs: Mapping[str, Any] | None = None,
        tokenizer_only: bool = False,
        **options: Any,
    ) -> None:
        from llada_plugins.engine.notices import WarnOnce

        self._check_names(options)
        chat = None if chat is None else as_flag("chat", chat)
        record_stats = as_flag("record_stats", record_stats)
        tokenizer_only = as_flag("tokenizer_only", tokenizer_only)
        path, chat, stop_words = of_preset(
            options.get("preset"), path, chat, stop_words, wrapped=bool(meta_template)
        )
        check_exclusive(meta_template, chat=chat, record_stats=record_stats)
        generation_kwargs = dict(generation_kwargs or {})
        check_generation_kwargs(generation_kwargs)
        self.num_answers = num_answers(generation_kwargs)
        check_names()
        for dataset in dataset_configs():
            check_dataset(dataset, self.num_answers)
        join_process_group()
        if max_seq_len is not None:
            options["max_length"] = max_seq_len
        if tokenizer_only:
            self._load_tokenizer(path, options)
        else:
            self._load(path, options)
            check_ends(meta_template, self.engine.special.ends)
            max_seq_len = self.engine.max_length
        super().__init__(
            path=path,
            max_seq_len=max_seq_len,
            tokenizer_only=tokenizer_only,
            meta_template=meta_template,
            generation_kwargs=generation_kwargs,
        )
        self.template_parser = TemplateParser(
            self.tokenizer, chat=chat, meta_template=meta_template
        )
        self.record_stats = record_stats
        self.stop_words = stop_strings(stop_words, "stop_words")
        self._infills = False
        self._wraps = bool(chat or meta_template)
        self._manifest = None if tokenizer_only else self._begin_manifest(chat, meta_template)
        self._lock = threading.RLock()  # stock inferencers may ask from a pool of threads
        self._warnings = WarnOnce(logger)
        self._streams = Streams(self._warnings)

    def _check_names(self, options: Mapping[str, Any]) -> None:
        """Raise ValueError on options that the method does not have, under their names here."""
        from llada_plugins.engine.asked import option_classes
        from llada_plugins.sampling.published import NAMES

        parameters = inspect.signature(LLaDA.__init__).parameters
        own = [name for name in parameters if name not in ("self", "options")]
        others = [name for name in names(*option_classes(self.method)) if name not in RENAMED]
        reject_unknown(options, [*own, *others, *NAMES], elsewhere=["batch_size"])

    def _load(self, path: str | None, options: dict[str, Any]) -> None:
        from mmengine import dist

        from llada_plugins.engine.engine import Engine

        placed = with_place(options)
        self.engine = Engine(self.method, pretrained=path, **placed)
        self._record_beside_predictions = placed is not options
        if not dist.is_main_process():
            self.engine.recorder = None  # every rank answers everything
        self.tokenizer = self.engine.tokenizer

    @cached_property
    def _journal(self) -> Journal:
        from llada_plugins.harness.opencompass_journal import Journal

        return Journal(self.engine.fingerprint())

    def _begin_manifest(self, chat: bool, meta_template: Mapping[str, Any] | None) -> TaskManifest:
        """Of the running task, if one is; refuses to go on with answers of another model."""
        from llada_plugins.harness.opencompass_manifest import TaskManifest

        entry = {
            "chat": chat,
            "meta_template": meta_template,
            "stop_words": self.stop_words,
            "num_return_sequences": self.num_answers,
        }
        return TaskManifest(self.engine, entry)

    def _load_tokenizer(self, path: str | None, options: Mapping[str, Any]) -> None:
        """The tokenizer alone, for a caller that renders and counts prompts."""
        from llada_plugins.engine.config import EngineConfig
        from llada_plugins.models.folder import resolve
        from llada_plugins.models.tokenizer import load_tokenizer
        from llada_plugins.options.fields import coerce

        asked = coerce(EngineConfig, options)
        self.engine = None  # type: ignore[assignment]  # such a caller asks nothing else
        self.tokenizer = load_tokenizer(
            resolve(asked.get("tokenizer") or path),
            asked.get("chat_template"),
            asked.get("enable_thinking"),
        )

    def sync_inputs(self, inputs: Any) -> Any:
        """The prompts of rank 0, on every rank.

        As they are, where stock code would send their tokens and cut them.
        """
        return of_first_rank(inputs)

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
        """The answers in the order of the prompts, of each prompt as many as are asked for.

        With num_return_sequences=n that is n in a row. generation_kwargs: of inferencers
        that pass their own; sampler options, do_sample, and num_return_sequences for this
        call. Asked by a stock inferencer, every row, repeat of a row and sample gets an
        answer of its own; equal prompts of a direct call get equal answers.
        """
        if min_out_len:
            self._warnings.warn(
                f"min_out_len={min_out_len} has no effect: every answer has gen_length tokens; "
                "logits_eos_inf=True forbids EOS"
            )
        number = num_answers(generation_kwargs, default=self.num_answers)
        if self._infills and self._wraps:
            raise ValueError(
                "InfillGenInferencer fills in spans of a text as it stands, and a chat's turn is "
                "no such text: leave out chat and meta_template"
            )
        options = sampler_options(generation_kwargs, self.engine.given)
        sampler = self.engine.sampler_for(options, max_out_len)
        of_data = stop_strings(stopping_criteria, "stopping_criteria")
        until = tuple(dict.fromkeys([*self.stop_words, *of_data]))
        with self._lock:
            streams = self._streams.of(
                self, inputs, chance=self.engine.draws(sampler), number=number
            )
            asked = [(prompt, each) for prompt, own in zip(inputs, streams) for each in own]
            ids = dict(reversed([*zip(asked, self._question_ids(len(inputs), number))]))
            answers = self._answers(list(dict.fromkeys(asked)), sampler, until, ids)
            for _ in range(len(asked) - len(answers)):
                self._progress().known()  # repeats within the call
        return [answers[each] for each in asked]

    @contextmanager
    def infilling(self) -> Iterator[None]:
        """Within it, prompts are texts with marked spans that are filled in."""
        self._infills = True
        try:
            yield
        finally:
            self._infills = False

    def _question_ids(self, num_inputs: int, number: int) -> list[QuestionId | None]:
        """Which row of which data set each answer is to, for trajectories, which go beside it."""
        if self.engine.recorder is None:
            return [None] * (num_inputs * number)
        return place_recorder(
            self.engine.recorder, self, num_inputs, number, move=self._record_beside_predictions
        )

    def _answers(
        self,
        asked: Sequence[tuple[str, Stream]],
        sampler: SamplerConfig,
        until: tuple[str, ...],
        ids: Mapping[tuple[str, Stream], QuestionId | None],
    ) -> dict[tuple[str, Stream], str | dict[str, Any]]:
        """The answer to each different pair of prompt and stream; ids: of their questions."""
        from llada_plugins.engine.engine import Request
        from llada_plugins.engine.marked_text import marked_request

        make = marked_request if self._infills else Request
        requests = [
            make(prompt, sampler, until)._replace(stream=stream, id=ids[prompt, stream])
            for prompt, stream in asked
        ]
        write_predictions_whole(self)
        self._journal.open(predictions_file(self))
        answers = {pair: self._journal.find(each) for pair, each in zip(asked, requests)}
        missing = [number for number, pair in enumerate(asked) if answers[pair] is None]
        bar = self._progress()
        for _ in range(len(requests) - len(missing)):
            bar.known()  # answers of an earlier run of the task
        asked_now = [requests[number] for number in missing]
        for index, completion in self.engine.generate(asked_now, len(asked_now)):
            answers[asked[missing[index]]] = completion
            self._journal.keep(asked_now[index], completion)
            bar.add(completion.num_tokens, completion.num_forwards)
        found = [each for each in answers.values() if each is not None]
        if self._manifest is not None:
            self._manifest.add(found)
        return {pair: self._prediction(each) for pair, each in answers.items() if each is not None}

    def _prediction(self, completion: Completion) -> str | dict[str, Any]:
        if not self.record_stats:
            return completion.text
        from llada_plugins.harness.statistics import statistics

        costs = statistics(completion)
        return {"prediction": completion.text, "nfe": costs["forwards"], **costs}


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
    """Process-reward candidates and back-masking: options of ReviewConfig and PRMConfig too.

    LLaDA-R3's; method: vanilla, backmask or window. Likelihoods are the baseline's: a
    process reward model changes decoding only.
    """

    method = "llada_prm"


def unwrap_prediction(prediction: str | Mapping[str, Any]) -> str:
    """The text of a prediction recorded with its statistics.

    For `pred_postprocessor` of a model entry with record_stats=True.
    """
    return prediction if isinstance(prediction, str) else prediction["prediction"]
