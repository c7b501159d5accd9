"""One answer to decode, and what comes of it."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from llada_plugins.diffusion.blocks import Given
from llada_plugins.diffusion.random_streams import request_key
from llada_plugins.files.json_files import short
from llada_plugins.likelihood.estimate import Mark
from llada_plugins.models import text
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.draft import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class QuestionId(NamedTuple):
    """Which question of a harness a request is."""

    task: str | None
    doc_id: int | None  # its number in the task
    repeat: int = 0  # which of several answers to it, from 0


class Request(NamedTuple):
    """One answer to decode."""

    prompt: str
    sampler: SamplerConfig
    until: tuple[str, ...] = ()  # stop strings; the earliest one found ends the text
    # what a process reward model is told was asked, unless question_pattern says (None:
    # the prompt)
    question: str | None = None
    # tells repeats of a prompt apart, whatever the call: part of the random key (None: the
    # number of equal requests before it in the call)
    stream: tuple[tuple[int, ...], ...] | None = None
    id: QuestionId | None = None  # for what is written down; changes no answer
    # what follows the prompt where spans of a text are filled in, see infilling.py: strings, and
    # for each span the lengths in tokens of which one is chosen
    rest: tuple[str | tuple[int, ...], ...] = ()


def check_requests(requests: object) -> None:
    """Raise ValueError on what is no list of requests of text."""
    if isinstance(requests, str) or not isinstance(requests, Sequence):
        raise ValueError(
            f"requests must be a list of Request(prompt, engine.sampler), got {short(requests)}"
        )
    for number, each in enumerate(requests):
        if not isinstance(each, Request) or not isinstance(each.sampler, SamplerConfig):
            raise ValueError(
                f"request {number} must be a Request(prompt, engine.sampler), got {short(each)}"
            )
        if not isinstance(each.prompt, str):
            raise ValueError(
                f"the prompt of request {number} must be a string, got {short(each.prompt)}"
            )
        if not isinstance(each.until, tuple) or not all(isinstance(s, str) for s in each.until):
            raise ValueError(
                f"until of request {number} must be a tuple of strings, got {short(each.until)}"
            )


class Completion(NamedTuple):
    """One decoded answer."""

    text: str
    num_forwards: int
    num_tokens: int  # as `counted_tokens` counts
    seconds: float  # its share of the time of the steps that it was in, see metering.py
    num_prm_calls: int = 0  # answers in work that a process reward model scored
    prm_seconds: float = 0.0  # of `seconds`, spent in it
    overlong: Mark | None = None  # what was done because the request did not fit
    # tokens that stood and were masked again or replaced, candidates included
    num_revised: int = 0
    # rows that it had in these passes beside one each, where steps branch
    num_branches: int = 0
    spans: tuple[str, ...] = ()  # of a text: what was filled in, one by one
    # the mean over the spans' tokens of the log probability (nats) at the step that kept each
    log_probability: float | None = None

    @property
    def tokens_per_forward(self) -> float:
        """How parallel decoding was; 0 where nothing was decoded."""
        return self.num_tokens / self.num_forwards if self.num_forwards else 0.0


class Encoded(NamedTuple):
    """A request as it is decoded."""

    number: int  # of the request in the call
    prompt: list[int]  # token ids, cut to what fits
    question: str  # what a process reward model is told was asked, "" without one
    mark: Mark | None  # what was done because it did not fit
    key: int  # of its random numbers
    request: Request
    given: Given | None = None  # of a text whose spans are filled in

    @property
    def num_tokens(self) -> int:
        """Tokens of its row."""
        blocks = self.request.sampler.blocks
        after = 0 if self.given is None else blocks.columns_after(len(self.given.after))
        return blocks.row(len(self.prompt)) + after


class Group(NamedTuple):
    """Requests that may share a batch."""

    sampler: SamplerConfig
    until: tuple[str, ...]
    members: list[Encoded]  # the longest prompt first

    @property
    def longest(self) -> int:
        """Tokens of the longest row, prompt and answer."""
        return max(each.num_tokens for each in self.members)

    @property
    def given(self) -> list[Given] | None:
        """What is known after each prompt, where spans of texts are filled in."""
        given = [each.given for each in self.members if each.given is not None]
        return given or None


def random_keys(requests: Sequence[Request], prompts: Sequence[Sequence[int]]) -> list[int]:
    """The key of each request's random numbers; the n-th repeat of a request has its own.

    So repeated sampling is not n times the same answer. The same prompt under other
    options is another request, not a repeat.
    """
    keys = []
    repeats = occurrences(request._replace(id=None) for request in requests)
    for request, prompt, repeat in zip(requests, prompts, repeats):
        told_apart = request.stream
        if told_apart is None:
            told_apart = ((repeat,),) if repeat else ()
        keys.append(request_key(request.sampler.seed, prompt, *told_apart))
    return keys


def occurrences(values: Iterable[Hashable]) -> list[int]:
    """Of each value, how many equal ones come before it."""
    seen: Counter[Hashable] = Counter()
    numbers = []
    for value in values:
        numbers.append(seen[value])
        seen[value] += 1
    return numbers


def groups(encoded: Iterable[Encoded]) -> list[Group]:
    """The encoded requests by sampler and stop strings, in the order of their longest prompts."""
    found: dict[tuple[SamplerConfig, tuple[str, ...], bool], list[Encoded]] = defaultdict(list)
    for each in sorted(encoded, key=lambda each: -len(each.prompt)):
        found[each.request.sampler, each.request.until, each.given is None].append(each)
    return [Group(sampler, until, members) for (sampler, until, _), members in found.items()]


def stop_rule(
    group: Group, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]
) -> Callable[[list[int]], bool] | None:
    """Does an answer in work hold a stop string already? What follows would be cut anyway."""
    if not group.until or not group.sampler.early_stop:
        return None

    def has_stop(answer: list[int]) -> bool:
        return text.find_stop(text.decode(tokenizer, answer, ends), group.until) is not None

    return has_stop


def counted_tokens(
    answer: Sequence[int],
    until: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    ends: Sequence[int],
) -> int:
    """Tokens of an answer that count: those before its first end token and first stop string.

    So neither EOS, nor what pads an answer after it, nor what a stop string cuts off is
    speed. A token that begins before the stop string counts. This is the rule of the
    published AUP scores (d3LLM), which tokenise the text that is left once more; here the
    tokens count that were decoded.
    """
    kept = text.before_end(answer, ends)
    stop = text.find_stop(text.decode(tokenizer, kept, ()), until)
    if stop is None:
        return len(kept)

    def shown(number: int) -> int:
        return len(text.decode(tokenizer, kept[:number], ()))

    return bisect_left(range(len(kept) + 1), stop, key=shown)


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
        counted_tokens(kept, until, tokenizer, ()),
        seconds=0.0,
        num_prm_calls=sample.num_scored,
        num_branches=sample.num_branches,
    )
