"""Text in, text and log-likelihoods out: what both harnesses call, and the only place where text meets tokens.

An Engine owns a checkpoint, its tokenizer and a method (a row of METHODS); it batches requests, cuts answers and counts. The
harness classes above it hold no logic; nothing below it knows of text.
"""
from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from . import checkpoint, text
from .config import arg, build, coerce, names, reject_unknown
from .generation import generate, with_options
from .likelihood import ESTIMATORS, LogLikelihood, log_likelihood
from .methods import METHODS, check_policy
from .noise import request_key
from .sampler import Sample
from .sampler_config import SamplerConfig

logger = logging.getLogger(__name__)

HARNESS_DEFAULTS = SamplerConfig(early_stop=True)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Which model, where it runs, and how likelihoods are estimated."""

    pretrained: str | None = arg(None, "checkpoint folder or hub id (default: the tiny model shipped in the package)")
    revision: str | None = arg(None, "branch, tag or commit of a hub id")
    tokenizer: str | None = arg(None, "folder or hub id of the tokenizer, where it is not beside the checkpoint")
    device: str = arg("auto", "auto (a GPU if there is one), cpu, cuda or cuda:N")
    dtype: str = arg("auto", "auto (bfloat16 on a GPU, else float32), float32, bfloat16 or float16")
    batch_size: int = arg(1, "requests decoded together, and masked rows per forward of a likelihood; does not change any answer")
    max_length: int | None = arg(None, "context in tokens, prompt and answer (default: the model's; lower it to save memory)")
    mask_id: int | None = arg(None, "id of the mask token, where neither config.json nor the tokenizer names it")
    mc_num: int = arg(128, "masks drawn per likelihood request; answers with no more masks than that are enumerated exactly")
    mc_seed: int = arg(0, "with the request's tokens, determines its masks")
    estimator: Literal[ESTIMATORS] = arg("count", "likelihood estimator: count (LLaDA's bound)")

    def __post_init__(self) -> None:
        for name in ("batch_size", "mc_num", "max_length"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


def option_classes(method: str) -> tuple[type, ...]:
    """The dataclasses whose fields are the options of an Engine of this method."""
    return EngineConfig, SamplerConfig, METHODS[method].options


class Request(NamedTuple):
    """One answer to decode."""

    prompt: str
    sampler: SamplerConfig
    until: tuple[str, ...] = ()       # stop strings; the earliest one found ends the text


class Completion(NamedTuple):
    """One decoded answer."""

    text: str
    num_forwards: int
    num_tokens: int        # tokens before the first EOS or EoT
    seconds: float         # wall time of its batch, shared equally


class Engine:
    """A checkpoint with its tokenizer, ready to answer and to score.

    options: any field of EngineConfig, SamplerConfig and the method's own options by name, as harnesses pass them; unknown names
    and bad values raise ValueError before weights are read.
    """

    def __init__(self, method: str = "llada", **options: Any) -> None:
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        reject_unknown(options, names(*option_classes(method)))
        self.method = method
        self.method_options = build(METHODS[method].options, options)
        self.config = build(EngineConfig, options)
        self.given = coerce(SamplerConfig, options)
        build(SamplerConfig, self.given, HARNESS_DEFAULTS)        # bad values fail here, before files are looked at
        self.folder = checkpoint.resolve(self.config.pretrained, self.config.revision)
        config = checkpoint.read_config(self.folder)
        tokenizer_folder = checkpoint.resolve(self.config.tokenizer) if self.config.tokenizer else self.folder
        self.tokenizer = text.load_tokenizer(tokenizer_folder)
        self.special = checkpoint.special_tokens(tokenizer_folder, config, self.config.mask_id)
        if self.special is None:
            raise ValueError(f"{self.folder}: neither config.json (mask_token_id) nor the tokenizer names a mask token: pass mask_id=…")
        self.max_length = self.config.max_length or config.max_sequence_length
        if self.max_length > config.max_sequence_length:
            raise ValueError(f"max_length={self.max_length} exceeds the model's context of {config.max_sequence_length} tokens")
        self.model = checkpoint.load_model(self.folder, device=self.config.device, dtype=self.config.dtype)
        self.prepared = METHODS[method].prepare(self.model, self.folder, self.method_options)
        self.denoise = self.prepared.denoise
        self.sampler = build(SamplerConfig, {**self.prepared.defaults(self.given), **self.given}, HARNESS_DEFAULTS)
        self._check_sampler(self.sampler)
        self._warned: set[str] = set()

    def sampler_for(self, options: Mapping[str, Any], max_tokens: int | None = None) -> SamplerConfig:
        """The sampler of one request: its own options before those of the engine; max_tokens only where neither sets gen_length."""
        reject_unknown(options, names(SamplerConfig), "sampler option")
        options = coerce(SamplerConfig, options)
        given = {**self.given, **options}
        merged = {"gen_length": max_tokens or self.sampler.gen_length, **self.prepared.defaults(given), **given}
        sampler = build(SamplerConfig, merged, HARNESS_DEFAULTS)
        for name in sorted(set(options) & set(self.given)):
            if (value := getattr(sampler, name)) != (before := getattr(self.sampler, name)):
                self._warn_once(f"{name}={value!r} of the task or of --gen_kwargs overrides {name}={before!r} of the model")
        if max_tokens and max_tokens != sampler.gen_length:
            self._warn_once(f"gen_length={sampler.gen_length} overrides the task's answer length of {max_tokens} tokens")
        return sampler

    def generate(self, requests: Sequence[Request], batch_size: int | None = None) -> Iterator[tuple[int, Completion]]:
        """Decode every request; yields (index, completion) as batches finish, longest prompts first.

        Every request is checked before the first forward. Requests share a batch only with their own sampler options.
        batch_size: in place of the configured one.
        """
        batch_size = batch_size or self.config.batch_size
        prompts = [self._prompt_ids(request) for request in requests]
        keys = self._keys(requests, prompts)
        for sampler in dict.fromkeys(request.sampler for request in requests):
            self._check_sampler(sampler)
        groups: dict[tuple[SamplerConfig, tuple[str, ...]], list[int]] = defaultdict(list)
        for number in sorted(range(len(requests)), key=lambda n: -len(prompts[n])):
            groups[requests[number].sampler, requests[number].until].append(number)
        for (sampler, until), members in groups.items():
            for first in range(0, len(members), batch_size):
                batch = members[first:first + batch_size]
                began = time.perf_counter()
                samples = generate(self.model, [prompts[n] for n in batch], sampler, special=self.special, denoise=self.denoise,
                                   keys=[keys[n] for n in batch], stop=self._stop(sampler, until))
                seconds = (time.perf_counter() - began) / len(batch)
                for number, sample in zip(batch, samples):
                    yield number, self._completion(sample, until, seconds)

    def log_likelihood(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
                       batch_size: int | None = None) -> Iterator[tuple[int, LogLikelihood]]:
        """A lower bound on log p(answer | context) for token pairs; yields (index, estimate) as they finish.

        A context that does not fit is cut from the left, with one warning; an answer that does not fit is an error.
        batch_size: masked rows of a forward, in place of the configured number.
        """
        batch_size = batch_size or self.config.batch_size
        fitted = [self._fit(number, *pair) for number, pair in enumerate(pairs)]
        order = sorted(range(len(pairs)), key=lambda n: -len(fitted[n][0]) - len(fitted[n][1]))
        share = max(1, 16 * batch_size // self.config.mc_num)        # requests whose rows fill 16 batches
        for first in range(0, len(order), share):
            chunk = order[first:first + share]
            values = log_likelihood(self.model, [fitted[n] for n in chunk], estimator=self.config.estimator, mc_num=self.config.mc_num,
                                    seed=self.config.mc_seed, cfg_scale=self.sampler.cfg_scale, batch_size=batch_size,
                                    special=self.special, denoise=self.denoise)
            yield from zip(chunk, values)

    def encode(self, string: str) -> list[int]:
        """Token ids; special tokens are added only where the string does not already begin with BOS, as a rendered chat does."""
        return text.encode(self.tokenizer, string)

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of context and continuation, split where the tokens of the whole string split; the context's trailing spaces go over."""
        stripped = context.rstrip()
        whole = self.encode(context + continuation)
        head = self.encode(stripped) if stripped else []
        return whole[:len(head)], whole[len(head):]

    def render_chat(self, messages: Sequence[Mapping[str, str]], prefill: bool = False) -> str:
        """The prompt string of a chat, ending with the assistant's header, or with the last message's text if that is a prefill."""
        return text.render_chat(self.tokenizer, messages, prefill)

    def fingerprint(self) -> str:
        """Identifies what determines this engine's answers: method, options, and the checkpoint by content. One line of JSON."""
        config = {name: value for name, value in asdict(self.config).items() if name not in ("pretrained", "revision", "batch_size", "device")}
        return json.dumps({"method": self.method, "checkpoint": _digest(self.folder), "device": self.model.device.type,
                           **config, **self._method_identity(), "sampler": asdict(self.sampler)}, sort_keys=True)

    def _method_identity(self) -> dict[str, Any]:
        """The method's own options, folders by their content."""
        return {name: _digest(Path(value)) if isinstance(value, str) and Path(value).is_dir() else value
                for name, value in asdict(self.method_options).items()}

    def info(self) -> dict[str, Any]:
        """For result files: what was evaluated, and how."""
        return {"method": self.method, "checkpoint": self.folder.name, "checkpoint_digest": _digest(self.folder),
                "model_num_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
                "model_dtype": str(self.model.dtype), "sampler": asdict(self.sampler), "confidence_source": self.sampler.source, "policy": self.prepared.policy,
                **asdict(self.method_options),
                "mc_num": self.config.mc_num, "mc_seed": self.config.mc_seed, "estimator": self.config.estimator}

    def _check_sampler(self, sampler: SamplerConfig) -> None:
        """Raise ValueError on options that need what this checkpoint or method lacks."""
        with_options(self.denoise, sampler, self.special)
        check_policy(sampler, self.prepared)

    def _prompt_ids(self, request: Request) -> list[int]:
        ids = self.encode(request.prompt)
        if not ids:
            raise ValueError("a prompt is empty: give at least one token of text")
        if len(ids) + request.sampler.gen_length > self.max_length:
            raise ValueError(f"a prompt of {len(ids)} tokens and gen_length={request.sampler.gen_length} exceed the context of {self.max_length} tokens "
                             f"(prompt begins {request.prompt[:40]!r}): use fewer shots or a smaller gen_length")
        return ids

    def _keys(self, requests: Sequence[Request], prompts: Sequence[Sequence[int]]) -> list[int]:
        """Random streams; the n-th repeat of a prompt gets its own, so that repeated sampling is not n times the same answer."""
        seen: Counter[Request] = Counter()
        keys = []
        for request, prompt in zip(requests, prompts):
            repeat = seen[request]        # the same prompt under other options is another request, not a repeat
            seen[request] += 1
            keys.append(request_key(request.sampler.seed, prompt, *([[repeat]] if repeat else [])))
        return keys

    def _stop(self, sampler: SamplerConfig, until: tuple[str, ...]) -> Callable[[list[int]], bool] | None:
        """Ends a row at the block that completes a stop string: what follows would be cut anyway."""
        if not until or not sampler.early_stop:
            return None
        return lambda answer: text.find_stop(text.decode(self.tokenizer, answer, self.special.ends), until) is not None

    def _completion(self, sample: Sample, until: tuple[str, ...], seconds: float) -> Completion:
        kept = text.before_end(sample.answer, self.special.ends)
        string = text.decode(self.tokenizer, kept, ())
        string = string[:text.find_stop(string, until)]
        return Completion(text.without_special_tokens(self.tokenizer, string), sample.num_forwards, len(kept), seconds)

    def _fit(self, number: int, context: Sequence[int], answer: Sequence[int]) -> tuple[list[int], list[int]]:
        if not len(answer):
            raise ValueError(f"answer {number} is empty: there is nothing to score")
        room = self.max_length - len(answer)
        if room < 0:
            raise ValueError(f"request {number}: an answer of {len(answer)} tokens exceeds the context of {self.max_length} tokens")
        if len(context) > room:
            self._warn_once(f"contexts are cut from the left to fit the model's {self.max_length} tokens")
        return list(context)[max(0, len(context) - room):], list(answer)

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            logger.warning(message)


def _digest(folder: Path) -> str:
    """A digest of a checkpoint, parts beside it included: sizes and both ends of its weight files (all of a small one), and its JSON files."""
    digest = hashlib.sha256()
    for path in sorted([*folder.rglob("*.safetensors"), *folder.rglob("*.json")]):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 22))
            file.seek(max(0, size - (1 << 22)))
            digest.update(file.read())
    return digest.hexdigest()[:16]
