"""Text in, text and log-likelihoods out: what both harnesses call, and the only place
where text meets tokens.

An Engine owns a checkpoint, its tokenizer and a method (a row of METHODS); it batches
requests, cuts answers and counts. The harness classes above it hold no logic; nothing
below it knows of text.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import time
from collections import ChainMap, Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from llada_plugins.diffusion.denoiser import capacity, check_unmasked
from llada_plugins.diffusion.random_streams import request_key
from llada_plugins.likelihood.estimate import LikelihoodSettings, LogLikelihood, Mark, iterate
from llada_plugins.methods.table import METHODS, check_policy
from llada_plugins.models import loading as checkpoint
from llada_plugins.models import text
from llada_plugins.models.folder import read_config, resolve, special_tokens
from llada_plugins.models.quantization import num_parameters, quantization_of
from llada_plugins.options.fields import build, coerce, names, reject_unknown, with_origins
from llada_plugins.rewards.block_review import BlockReview
from llada_plugins.rewards.steps import block_scorer
from llada_plugins.sampling.config import SamplerConfig, judged
from llada_plugins.sampling.generate import with_options
from llada_plugins.sampling.sampler import Draft, Filled, Review, Sample, decode_each, once

from .config import HARNESS_DEFAULTS, LIKELIHOOD, NOT_IDENTITY, EngineConfig
from .overlong import PRM_REMEDY, Overlong

logger = logging.getLogger(__name__)


def option_classes(method: str) -> tuple[type, ...]:
    """The dataclasses whose fields are the options of an Engine of this method."""
    return EngineConfig, SamplerConfig, METHODS[method].options


class Request(NamedTuple):
    """One answer to decode."""

    prompt: str
    sampler: SamplerConfig
    until: tuple[str, ...] = ()  # stop strings; the earliest one found ends the text
    # what a process reward model is told was asked, unless question_pattern says (None:
    # the prompt)
    question: str | None = None
    # tells repeats of a prompt apart, whatever the call: part of the random key
    stream: tuple[tuple[int, ...], ...] = ()


class Completion(NamedTuple):
    """One decoded answer."""

    text: str
    num_forwards: int
    num_tokens: int  # tokens before the first EOS or EoT
    seconds: float  # wall time of the batches it was in, shared equally by their rows
    num_prm_calls: int = 0  # answers in work that a process reward model scored
    prm_seconds: float = 0.0  # of `seconds`, spent in it
    overlong: Mark | None = None  # what was done because the request did not fit


class Engine:
    """A checkpoint with its tokenizer, ready to answer and to score.

    options: any field of EngineConfig, SamplerConfig and the method's own options by
    name, as harnesses pass them; unknown names and bad values raise ValueError before
    weights are read.
    """

    def __init__(self, method: str = "llada", /, **options: Any) -> None:
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        reject_unknown(options, names(*option_classes(method)))
        self.method = method
        self.method_options = build(METHODS[method].options, options)
        self.config = build(EngineConfig, options)
        self.given = coerce(SamplerConfig, options)
        judged(self.given, HARNESS_DEFAULTS)  # bad values fail before files are looked at
        self.folder = resolve(self.config.pretrained, self.config.revision)
        self.adapter = resolve(self.config.peft, option="peft") if self.config.peft else None
        config = read_config(self.folder)
        tokenizer_folder = resolve(self.config.tokenizer) if self.config.tokenizer else self.folder
        self.tokenizer = text.load_tokenizer(tokenizer_folder, self.config.chat_template)
        # its name, None for the only one or the default
        self.chat_template = self.config.chat_template
        self.special = special_tokens(tokenizer_folder, config, self.config.mask_id)
        if self.special is None:
            raise ValueError(
                f"{self.folder}: neither config.json (mask_token_id) nor the tokenizer names a "
                "mask token: pass mask_id=…"
            )
        self.max_length = self.config.max_length or config.max_sequence_length
        if self.max_length > config.max_sequence_length:
            raise ValueError(
                f"max_length={self.max_length} exceeds the model's context of "
                f"{config.max_sequence_length} tokens"
            )
        load = functools.partial(
            checkpoint.load_model,
            self.folder,
            device=self.config.device,
            dtype=self.config.dtype,
            quantize=self.config.quantize,
            peft=self.adapter,
        )
        self.prepared = METHODS[method].prepare(load, self.folder, self.method_options)
        self.model = self.prepared.model
        self.max_answer = self.prepared.max_answer or self.max_length  # tokens
        self.denoise = self.prepared.denoise
        self._warned: set[str] = set()
        self.overlong = Overlong(self.config.overlong, self.max_length)
        # of every request; unless gen_length is given, its length is only one that the
        # others allow
        self.common = judged({**self.prepared.defaults(self.given), **self.given}, HARNESS_DEFAULTS)
        self._check_sampler(self.common)
        # of the last question, tokenised once for all its choices
        self._context: tuple[str | None, list[int]] = (None, [])

    @property
    def sampler(self) -> SamplerConfig:
        """Of a request that states nothing itself, not even how long its answer is."""
        return self.sampler_for({})

    def sampler_for(
        self, options: Mapping[str, Any], max_tokens: int | None = None
    ) -> SamplerConfig:
        """The sampler of one request: its own options before those of the engine;
        max_tokens only where neither sets gen_length.
        """
        reject_unknown(options, names(SamplerConfig), "sampler option")
        options = coerce(SamplerConfig, options)
        by_method = self.prepared.defaults({**self.given, **options})
        origins = {
            "the request (task or --gen_kwargs)": options,
            "the model's options (model_args)": self.given,
            f"the defaults of {self.method}": by_method,
            "the task's answer length": {"gen_length": max_tokens} if max_tokens else {},
            "the defaults": asdict(HARNESS_DEFAULTS),
        }
        try:
            sampler = build(SamplerConfig, ChainMap(*origins.values()))
        except ValueError as error:
            raise with_origins(error, origins) from None
        self._tell(sampler, options, max_tokens)
        return sampler

    def _tell(
        self, sampler: SamplerConfig, options: Mapping[str, Any], max_tokens: int | None
    ) -> None:
        """What of a request is not as the task, or as the user, may expect it."""
        for name in sorted(set(options) & set(self.given)):
            if (value := getattr(sampler, name)) != (before := self.given[name]):
                self._warn_once(
                    f"{name}={value!r} of the task or of --gen_kwargs overrides {name}={before!r} "
                    "of the model"
                )
        if max_tokens and max_tokens != sampler.gen_length:
            self._warn_once(
                f"gen_length={sampler.gen_length} overrides the task's answer length of "
                f"{max_tokens} tokens"
            )
        if sampler.decoded_length > sampler.gen_length:
            self._warn_once(
                f"answers that blocks of {sampler.block} tokens do not divide are decoded "
                f"in whole blocks and cut: {sampler.gen_length} tokens cost what "
                f"{sampler.decoded_length} do",
                about="whole blocks",
            )

    def generate(
        self, requests: Sequence[Request], batch_size: int | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """Decode every request; yields (index, completion) as answers end, those of
        longest prompts first.

        Every request is checked before the first forward. Requests share a batch only
        with their own sampler options; when an answer ends, at a block's end, a waiting
        request takes its place. batch_size: in place of the configured one; where
        batch_tokens is configured, that counts.
        """
        at_once = capacity(batch_size or self.config.batch_size, self.config.batch_tokens)
        for sampler in dict.fromkeys(request.sampler for request in requests):
            self._check_sampler(sampler)
        encoded = [self.encode(request.prompt) for request in requests]
        prompts, marks = self.overlong.prompts(requests, encoded)
        check_unmasked(prompts, self.special.mask)
        questions = [self._question(request) for request in requests]
        if self.prepared.judge is not None:
            scorer = self.prepared.judge.scorer
            questions, marks = self.overlong.questions(requests, questions, marks, scorer)
        keys = self._keys(requests, prompts)
        for number, mark in enumerate(marks):
            if mark == "skipped":
                yield number, Completion("", 0, 0, 0.0, overlong=self.overlong.counted(mark))
        decoded = [number for number, mark in enumerate(marks) if mark != "skipped"]
        groups: dict[tuple[SamplerConfig, tuple[str, ...]], list[int]] = defaultdict(list)
        for number in sorted(decoded, key=lambda n: -len(prompts[n])):
            groups[requests[number].sampler, requests[number].until].append(number)
        for (sampler, until), members in groups.items():
            spent, cut = [[0.0, 0.0] for _ in members], set()
            samples = decode_each(
                with_options(self.denoise, sampler, self.special),
                [prompts[n] for n in members],
                sampler,
                self.special,
                device=self.model.device,
                keys=[keys[n] for n in members],
                stop=self._stop(sampler, until),
                review=self._timed(
                    self._review(sampler, [questions[n] for n in members], cut), spent
                ),
                at_once=at_once,
            )
            for row, sample in samples:
                mark = self.overlong.counted("truncated" if row in cut else marks[members[row]])
                completion = self._completion(sample, until, *spent[row])
                yield members[row], completion._replace(overlong=mark)

    def log_likelihood(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int | None = None
    ) -> Iterator[tuple[int, LogLikelihood]]:
        """log p(answer | context) for token pairs by the configured estimator; yields
        (index, estimate) as they finish.

        What does not fit is treated as `overlong` says; of an answer that is cut, the
        last tokens are scored. batch_size: masked rows of a forward, in place of the
        configured number; pairs with the same context are the choices of a question.
        """
        self._check_answers(pairs)
        fitted, marks = self.overlong.pairs(pairs, lambda ids: text.decode(self.tokenizer, ids, ()))
        if self.method != "llada":
            self._warn_once(f"{self.method}: likelihoods are {METHODS[self.method].likelihood}")
        scored = []
        for number, mark in enumerate(marks):
            if mark == "skipped":
                greedy = False if self.config.greedy_check else None
                estimate = LogLikelihood(-math.inf, 0.0, 0, greedy, self.overlong.counted(mark))
                yield number, self._logged(fitted[number], estimate)
            else:
                scored.append(number)
        settings = LikelihoodSettings(
            limits=self.config.budget(),
            estimator=self.config.estimator,
            seed=self.config.mc_seed,
            cfg_scale=self.common.cfg_scale,
            batch_size=batch_size or self.config.batch_size,
            batch_tokens=self.config.batch_tokens,
            greedy_check=self.config.greedy_check,
        )
        estimates = iterate(
            self.model,
            [fitted[number] for number in scored],
            settings,
            special=self.special,
            denoise=self.denoise,
        )
        for place, estimate in estimates:
            number = scored[place]
            estimate = estimate._replace(overlong=self.overlong.counted(marks[number]))
            yield number, self._logged(fitted[number], estimate)

    def _logged(
        self, pair: tuple[Sequence[int], Sequence[int]], estimate: LogLikelihood
    ) -> LogLikelihood:
        """The estimate, also appended to likelihood_log.

        One unbuffered write, so that processes may share the file.
        """
        if self.config.likelihood_log:
            context, answer = (text.decode(self.tokenizer, ids, ()) for ids in pair)
            line = {"context": context, "answer": answer, "num_tokens": len(pair[1])}
            line.update(estimate._asdict())
            del line["overlong"]  # of error(), where there is something to say
            line.update(estimate.error())
            if math.isinf(estimate.value):
                line["value"] = None  # JSON has no infinity
            with open(self.config.likelihood_log, "ab", buffering=0) as file:
                file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
        return estimate

    def encode(self, string: str) -> list[int]:
        """Token ids; special tokens are added only where the string does not already
        begin with BOS, as a rendered chat does.
        """
        return self._known(text.encode(self.tokenizer, string))

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of context and continuation as in lm-eval: the context's trailing spaces
        go over, and the tokens of the whole string are split; where one of them spans
        the join, see text.encode_pair.
        """
        stripped = context.rstrip()
        if self._context[0] != stripped:
            self._context = stripped, self.encode(stripped)
        ids = list(self._context[1])
        return ids, self._known(
            text.encode_pair(self.tokenizer, stripped, ids, context[len(stripped) :] + continuation)
        )

    def _known(self, ids: list[int]) -> list[int]:
        text.check_vocabulary(ids, self.model.config.num_embeddings, str(self.folder))
        return ids

    def use_template(self, name: str) -> None:
        """Render chats through the tokenizer's template of that name from now on;
        ValueError where another was chosen, or it has none.
        """
        if self.chat_template == name:
            return
        if self.chat_template is not None:
            raise ValueError(
                f"chat template {name!r} was asked for, and chat_template={self.chat_template!r} "
                "before: give one of them"
            )
        text.choose_template(self.tokenizer, name)
        self.chat_template = name

    def render_chat(self, messages: Sequence[Mapping[str, str]], prefill: bool = False) -> str:
        """The prompt string of a chat, ending with the assistant's header, or with the
        last message's text if that is a prefill.
        """
        return text.render_chat(self.tokenizer, messages, prefill)

    def fingerprint(self) -> str:
        """Identifies what determines this engine's answers: method, options, and the
        checkpoint by content. One line of JSON.
        """
        config = {
            name: value for name, value in asdict(self.config).items() if name not in NOT_IDENTITY
        }
        return json.dumps(
            {
                "method": self.method,
                "checkpoint": _digest(self.folder),
                **self._peft(),
                "device": self.model.device.type,
                **config,
                "method_options": self._method_identity(),
                "sampler": self._sampler(),
            },
            sort_keys=True,
        )

    def _peft(self) -> dict[str, str]:
        """The adapter by its content, where there is one."""
        return {"peft_digest": _digest(self.adapter)} if self.adapter else {}

    def _method_identity(self) -> dict[str, Any]:
        """The method's own options, folders by their content."""
        return {
            name: _digest(Path(value)) if isinstance(value, str) and Path(value).is_dir() else value
            for name, value in asdict(self.method_options).items()
        }

    def info(self) -> dict[str, Any]:
        """For result files: what was evaluated, and how."""
        return {
            "method": self.method,
            "checkpoint": self.folder.name,
            "checkpoint_digest": _digest(self.folder),
            **self._peft(),
            "model_num_parameters": num_parameters(self.model),
            "quantization": record.method if (record := quantization_of(self.model)) else None,
            "model_dtype": str(self.model.dtype),
            "sampler": self._sampler(),
            "confidence_source": self.common.source,
            "policy": self.prepared.policy,
            "chat_template": self.chat_template,
            "method_options": asdict(self.method_options),
            "likelihood": METHODS[self.method].likelihood,
            "overlong": self.config.overlong,
            **{name: getattr(self.config, name) for name in LIKELIHOOD},
        }

    def _sampler(self) -> dict[str, Any]:
        """The options of every request; gen_length is None where it is each task's."""
        return {**asdict(self.common), "gen_length": self.given.get("gen_length")}

    def draws(self, sampler: SamplerConfig) -> bool:
        """Do answers depend on random numbers?"""
        return (
            sampler.temperature > 0 or sampler.source == "random" or self.prepared.judge is not None
        )

    def _check_sampler(self, sampler: SamplerConfig) -> None:
        """Raise ValueError on options that need what this checkpoint or method lacks."""
        with_options(self.denoise, sampler, self.special)
        check_policy(sampler, self.prepared)
        sampler.check_budget(reviewed=self.prepared.judge is not None)

    def _keys(self, requests: Sequence[Request], prompts: Sequence[Sequence[int]]) -> list[int]:
        """Random streams; the n-th repeat of a prompt gets its own, so that repeated
        sampling is not n times the same answer.
        """
        seen: Counter[Request] = Counter()
        keys = []
        for request, prompt in zip(requests, prompts):
            # the same prompt under other options is another request, not a repeat
            repeat = seen[request]
            seen[request] += 1
            keys.append(
                request_key(
                    request.sampler.seed, prompt, *([[repeat]] if repeat else []), *request.stream
                )
            )
        return keys

    def _stop(
        self, sampler: SamplerConfig, until: tuple[str, ...]
    ) -> Callable[[list[int]], bool] | None:
        """Ends a row at the block that completes a stop string: what follows would be
        cut anyway.
        """
        if not until or not sampler.early_stop:
            return None
        return lambda answer: (
            text.find_stop(text.decode(self.tokenizer, answer, self.special.ends), until)
            is not None
        )

    def _question(self, request: Request) -> str:
        """What a process reward model is told was asked."""
        judge = self.prepared.judge
        if judge is None:
            return ""
        if request.question is not None and judge.question_pattern is None:
            return request.question
        return judge.question(text.without_special_tokens(self.tokenizer, request.prompt))

    def _review(self, sampler: SamplerConfig, questions: Sequence[str], cut: set[int]) -> Review:
        """The method's review of answers to these questions; cut: gets the rows of those cut."""
        judge = self.prepared.judge
        if judge is None:
            return once

        def shorten(row: int) -> None:
            cut.add(row)
            self._warn_once(
                f"solutions exceed the PRM's context of {judge.scorer.max_length} tokens with "
                "their "
                f"questions, of which it is told the end alone: {PRM_REMEDY}"
            )

        score = block_scorer(
            judge.scorer,
            questions,
            block=sampler.block,
            ends=self.special.ends,
            by=judge.step_split,
            shorten=None if self.config.overlong == "error" else shorten,
            decode=lambda ids: text.without_special_tokens(
                self.tokenizer, text.decode(self.tokenizer, ids, ())
            ),
        )
        return BlockReview(judge.review, sampler, score, self.special.mask)

    def _timed(self, review: Review, spent: list[list[float]]) -> Review:
        """The same review; to spent[row] goes the row's share of the wall time, and of
        that in the process reward model.
        """

        def fill(draft: Draft) -> Filled:
            began, before = time.perf_counter(), self._prm_seconds()
            filled = review(draft)
            filled.forwards.tolist()  # waits for the device
            seconds = time.perf_counter() - began, self._prm_seconds() - before
            for row in draft.rows.tolist():
                spent[row] = [
                    total + each / len(draft.rows) for total, each in zip(spent[row], seconds)
                ]
            return filled

        return fill

    def _prm_seconds(self) -> float:
        return self.prepared.judge.scorer.seconds if self.prepared.judge else 0.0

    def _completion(
        self, sample: Sample, until: tuple[str, ...], seconds: float, prm_seconds: float
    ) -> Completion:
        kept = text.before_end(sample.answer, self.special.ends)
        string = text.decode(self.tokenizer, kept, ())
        string = string[: text.find_stop(string, until)]
        return Completion(
            text.without_special_tokens(self.tokenizer, string),
            sample.num_forwards,
            len(kept),
            seconds,
            sample.num_scored,
            prm_seconds,
        )

    def _check_answers(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
        """Raise ValueError on an answer that is empty, or that a router does not know."""
        for number, (_, answer) in enumerate(pairs):
            if not len(answer):
                raise ValueError(f"answer {number} is empty: there is nothing to score")
            if len(answer) > self.max_answer and self.max_answer < self.max_length:
                raise ValueError(
                    f"request {number}: an answer of {len(answer)} tokens exceeds the "
                    f"{self.max_answer} that {self.method} knows (max_positions of its router): "
                    "train a longer one (training.router_sft --max_positions), or use llada"
                )

    def _warn_once(self, message: str, about: str | None = None) -> None:
        """Once for each message, or once for all that are about one thing."""
        if (about or message) not in self._warned:
            self._warned.add(about or message)
            logger.warning(message)


def _digest(folder: Path) -> str:
    """A digest of a checkpoint, parts beside it included: sizes and both ends of its
    weight files (all of a small one), and its JSON files and templates.
    """
    digest = hashlib.sha256()
    for path in sorted(
        path for kind in ("safetensors", "json", "jinja") for path in folder.rglob(f"*.{kind}")
    ):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 22))
            file.seek(max(0, size - (1 << 22)))
            digest.update(file.read())
    return digest.hexdigest()[:16]
