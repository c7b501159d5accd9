"""One answer to decode, and what comes of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from llada_plugins.diffusion.random_streams import request_key
from llada_plugins.likelihood.estimate import Mark
from llada_plugins.models import text
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.decode import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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


class Encoded(NamedTuple):
    """A request as it is decoded."""

    number: int  # of the request in the call
    prompt: list[int]  # token ids, cut to what fits
    question: str  # what a process reward model is told was asked, "" without one
    mark: Mark | None  # what was done because it did not fit
    key: int  # of its random numbers


class Group(NamedTuple):
    """Requests that may share a batch."""

    sampler: SamplerConfig
    until: tuple[str, ...]
    members: list[Encoded]  # the longest prompt first

    @property
    def longest(self) -> int:
        """Tokens of the longest row, prompt and answer."""
        return len(self.members[0].prompt) + self.sampler.decoded_length


def random_keys(requests: Sequence[Request], prompts: Sequence[Sequence[int]]) -> list[int]:
    """The key of each request's random numbers; the n-th repeat of a request has its own.

    So repeated sampling is not n times the same answer. The same prompt under other
    options is another request, not a repeat.
    """
    seen: Counter[Request] = Counter()
    keys = []
    for request, prompt in zip(requests, prompts):
        repeat = seen[request]
        seen[request] += 1
        told_apart = [[repeat]] if repeat else []
        keys.append(request_key(request.sampler.seed, prompt, *told_apart, *request.stream))
    return keys


def groups(requests: Sequence[Request], encoded: Iterable[Encoded]) -> list[Group]:
    """The encoded requests by sampler and stop strings, in the order of their longest prompts."""
    found: dict[tuple[SamplerConfig, tuple[str, ...]], list[Encoded]] = defaultdict(list)
    for each in sorted(encoded, key=lambda each: -len(each.prompt)):
        request = requests[each.number]
        found[request.sampler, request.until].append(each)
    return [Group(sampler, until, members) for (sampler, until), members in found.items()]


def stop_rule(
    group: Group, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]
) -> Callable[[list[int]], bool] | None:
    """Does an answer in work hold a stop string already? What follows would be cut anyway."""
    if not group.until or not group.sampler.early_stop:
        return None

    def has_stop(answer: list[int]) -> bool:
        return text.find_stop(text.decode(tokenizer, answer, ends), group.until) is not None

    return has_stop


def completed(
    sample: Sample, until: Sequence[str], tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]
) -> Completion:
    """A decoded answer as text; its time is not known here."""
    kept = text.before_end(sample.answer, ends)
    string = text.decode(tokenizer, kept, ())
    string = string[: text.find_stop(string, until)]
    return Completion(
        text.without_special_tokens(tokenizer, string),
        sample.num_forwards,
        len(kept),
        seconds=0.0,
        num_prm_calls=sample.num_scored,
    )
