"""A text with spans that are to be filled in: how it is written, tokenised and answered.

Spans are marked <|infill|>, <|infill:8|> (tokens) or <|infill:4,8,16|> (tokens to choose
from). Of these the length is taken whose decoded tokens have the highest mean log
probability, each at the step that kept it: with one token a step that is the chain rule in
the order of decoding, by length, as translations of different lengths are compared (Wu et
al., arXiv 1609.08144). An end token in a span cuts the span's text there.

The strings between spans are tokenised one by one, so that no token lies on a border.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from llada_plugins.diffusion.blocks import Given
from llada_plugins.methods.table import METHODS
from llada_plugins.models import text
from llada_plugins.models.families import FAMILIES, with_attention
from llada_plugins.models.folder import read_config
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.draft import Sample
from llada_plugins.sampling.for_model import defaults_of
from llada_plugins.sampling.infilling import check_infilling, for_infilling, spans
from llada_plugins.sampling.sampler import Step
from llada_plugins.tasks.spans import BEGINS, WRITTEN

from .asked import Asked
from .request import Completion, Encoded, Group, Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .engine import Engine

MARKER = re.compile(r"<\|infill(?::([0-9, ]*))?\|>")
MOST_CHOICES = 64  # combinations of lengths that are tried for a text

Piece = str | tuple[int, ...]  # text, or the lengths of a span to choose from


class FilledIn(NamedTuple):
    """A text whose spans are filled in."""

    text: str  # all of it
    spans: tuple[str, ...]
    completion: Completion  # what it cost


def marked(string: str, length: int) -> list[Piece]:
    """The pieces of a text with marked spans; length: tokens of one that states none.

    ValueError where nothing is marked, or something looks like a mark and is none.
    """
    pieces: list[Piece] = []
    parts = MARKER.split(string)
    for number, part in enumerate(parts):
        if number % 2:
            pieces.append((length,) if part is None else _lengths(part))
        elif BEGINS in part:
            place = part.index(BEGINS)
            raise ValueError(f"{WRITTEN}, got {part[place : place + 30]!r}: mend the mark")
        elif part:
            pieces.append(part)
    return checked(pieces)


def _lengths(part: str) -> tuple[int, ...]:
    numbers = [each.strip() for each in part.split(",")]
    if not all(numbers):
        raise ValueError(f"{WRITTEN}, got '<|infill:{part}|>': give each length")
    return tuple(map(int, numbers))


def checked(pieces: Sequence[str | int | Sequence[int]]) -> list[Piece]:
    """The same, a length as a choice of one. ValueError on what cannot be filled in."""
    found: list[Piece] = [_piece(each) for each in pieces]
    found = [each for each in found if each != ""]
    lengths = [each for each in found if not isinstance(each, str)]
    if not lengths:
        raise ValueError(f"nothing is to be filled in: the text has no span ({WRITTEN})")
    for each in lengths:
        _check_lengths(each)
    for one, other in itertools.pairwise(found):
        if not isinstance(one, str) and not isinstance(other, str):
            raise ValueError(
                f"two spans, of {_told(one)} and {_told(other)} tokens, have no text between them: "
                "make one of them"
            )
    number = math.prod(map(len, lengths))
    if number > MOST_CHOICES:
        raise ValueError(
            f"the lengths of the spans have {number} combinations, and at most {MOST_CHOICES} are "
            "tried: name fewer lengths"
        )
    return found


def _check_lengths(lengths: Sequence[int]) -> None:
    if not lengths or min(lengths) < 1:
        raise ValueError(f"a span has at least 1 token, got {_told(lengths)}: give its length")
    if len(set(lengths)) < len(lengths):
        raise ValueError(f"a span's lengths differ, got {_told(lengths)}: name each once")


def _piece(each: str | int | Sequence[int]) -> Piece:
    if isinstance(each, str):
        return each
    return (each,) if isinstance(each, int) else tuple(each)


def _told(lengths: Sequence[int]) -> str:
    return ",".join(map(str, lengths)) or "none"


def request_of(pieces: Sequence[str | int | Sequence[int]], sampler: SamplerConfig) -> Request:
    """The request to fill in the spans among these pieces, text and lengths."""
    found = checked(pieces)
    prompt = found.pop(0) if isinstance(found[0], str) else ""
    assert isinstance(prompt, str)
    return Request(prompt, sampler, rest=tuple(found))


def marked_request(string: str, sampler: SamplerConfig, until: Sequence[str] = ()) -> Request:
    """The request to fill in a text's marked spans; gen_length: of one that states no length.

    ValueError where stop strings are given: a text that goes on after a span has no end.
    """
    if until:
        raise ValueError(
            f"stop strings ({', '.join(map(repr, until))}) have no effect in a span, after which "
            "the text goes on: leave them out (until: [])"
        )
    return request_of(marked(string, sampler.gen_length), sampler)


def check_ahead(method: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError where an Engine of these options could fill in nothing.

    Reads no weights.
    """
    asked = Asked(method, options)
    folder = asked.folders().checkpoint
    config = with_attention(read_config(folder), asked.config.attention, str(folder))
    given = asked.sampler(FAMILIES[config.family].sampler)
    sampler = asked.built({**defaults_of(config, given), **given})
    check_infilling(sampler, reviewed=METHODS[method].judges)


def ranks_otherwise(sampler: SamplerConfig) -> str | None:
    """The option because of which tokens are not ranked by their probability alone, if one is."""
    if sampler.source_of_masked != "tps_prob":
        return f"confidence_source={sampler.source_of_masked}"
    if sampler.opens_with_one:
        return "shift_cache=published"
    others = ("alg_temp", "confidence_eos_eot_inf")
    return next((name for name in others if getattr(sampler, name)), None)


def check_choice(request: Request) -> None:
    """Raise ValueError where a span's length is open and no probabilities tell it."""
    is_open = any(len(each) > 1 for each in request.rest if not isinstance(each, str))
    other = ranks_otherwise(request.sampler)
    if is_open and other:
        raise ValueError(
            f"a span's length is chosen by the probabilities of its tokens, and {other} ranks "
            "them otherwise: name one length, or leave it out"
        )


def given_of(
    request: Request, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], mask_id: int
) -> Given:
    """What stands after a request's prompt, whose spans have one length each.

    ValueError on text with the mask token.
    """
    row: list[int] = []
    for each in request.rest:
        if not isinstance(each, str):
            row += [mask_id] * each[0]
            continue
        ids = text.encode_part(tokenizer, prompt, each)
        if mask_id in ids:
            raise ValueError(
                f"the text {each[:40]!r} holds the mask token (id {mask_id}): mark a span in its "
                f"place ({WRITTEN})"
            )
        row += ids
    end = len(row) - row[::-1].index(mask_id)
    return Given(tuple(row[:end]), tuple(row[end:]))


def fitted(request: Request, given: Given | None) -> Request:
    """The request with a sampler for what it fills in; one without spans as it is."""
    if given is None:
        return request
    return request._replace(sampler=for_infilling(request.sampler, len(given.answer)))


def row(prompt: Sequence[int], given: Given | None) -> Sequence[int]:
    """The whole row that names a request's random numbers."""
    return prompt if given is None else [*prompt, *given.answer, *given.after]


def completed(
    sample: Sample, member: Encoded, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]
) -> Completion:
    """What was filled in, as text: from the first span to the last, what was given included."""
    assert member.given is not None
    decoded = iter(_runs(sample.answer, member.request.rest, member.given))
    parts, filled, num_tokens = [], [], 0
    for each in member.request.rest:
        if isinstance(each, str):
            parts.append(each)
            continue
        kept = text.before_end(next(decoded), ends)
        num_tokens += len(kept)
        string = text.without_special_tokens(tokenizer, text.decode(tokenizer, kept, ()))
        parts.append(string)
        filled.append(string)
    if isinstance(member.request.rest[-1], str):
        parts.pop()
    return Completion(
        "".join(parts),
        sample.num_forwards,
        num_tokens,
        seconds=0.0,
        num_branches=sample.num_branches,
        spans=tuple(filled),
    )


def _runs(answer: Sequence[int], rest: Sequence[Piece], given: Given) -> list[list[int]]:
    """The tokens of each span; a string without tokens between two joins their masks."""
    lengths = [each[0] for each in rest if not isinstance(each, str)]
    mask = given.answer[0]
    tokens = itertools.chain.from_iterable(spans(answer, given, mask))
    return [list(itertools.islice(tokens, length)) for length in lengths]


class Likelihoods:
    """How probable the tokens were that a group's rows kept, where spans are filled in."""

    def __init__(self, group: Group, device: torch.device) -> None:
        size = len(group.members), group.sampler.gen_length
        self.known = group.given is not None and ranks_otherwise(group.sampler) is None
        self.log_probability = torch.zeros(size if self.known else (0, 0), device=device)

    @property
    def on_step(self) -> Callable[[Step], None] | None:
        """What sees the steps; nothing where no span is filled in."""
        return self._see if self.known else None

    def _see(self, step: Step) -> None:
        """A token that is masked again and kept later counts as it was kept last."""
        rows, columns = step.kept.nonzero().unbind(-1)
        places = step.start[rows] + columns
        self.log_probability[step.rows[rows], places] = step.score[rows, columns].log()

    def mean(self, row: int, member: Encoded) -> float | None:
        """The mean over the row's spans, nats a token."""
        if not self.known:
            return None
        num_masked = sum(each[0] for each in member.request.rest if not isinstance(each, str))
        return float(self.log_probability[row].double().sum()) / num_masked


class Try(NamedTuple):
    """A request with one length for each span."""

    number: int  # of the request that it is of
    request: Request


def tries(requests: Sequence[Request]) -> list[Try]:
    """The requests with every combination of lengths of their spans; others as they are."""
    found = []
    for number, request in enumerate(requests):
        check_choice(request)
        choices: list[list[str | tuple[int, ...]]] = [
            [each] if isinstance(each, str) else [(length,) for length in each]
            for each in request.rest
        ]
        for rest in itertools.product(*choices):
            found.append(Try(number, request._replace(rest=rest)))
    return found


def chosen(
    requests: Sequence[Request],
    generate: Callable[[Sequence[Request]], Iterator[tuple[int, Completion]]],
) -> Iterator[tuple[int, Completion]]:
    """The completion of each request; of one whose spans' lengths are open, the best.

    generate: of requests whose lengths are known. What all lengths have cost is told of it.
    """
    asked = tries(requests)
    waiting: dict[int, dict[int, Completion]] = defaultdict(dict)
    number_of = Counter(each.number for each in asked)
    for place, completion in generate([each.request for each in asked]):
        number = asked[place].number
        waiting[number][place] = completion
        if len(waiting[number]) == number_of[number]:
            yield number, _best(waiting.pop(number))


def _best(found: Mapping[int, Completion]) -> Completion:
    """The completion with the highest mean log probability; the first named of equal ones."""
    places = sorted(found)
    if len(places) == 1:
        return found[places[0]]
    best = max(places, key=lambda place: found[place].log_probability or 0.0)
    return found[best]._replace(
        num_forwards=sum(each.num_forwards for each in found.values()),
        num_branches=sum(each.num_branches for each in found.values()),
        num_revised=sum(each.num_revised for each in found.values()),
        seconds=sum(each.seconds for each in found.values()),
    )


def fill_in(engine: Engine, request: Request) -> FilledIn:
    """The whole text of a request with its spans filled in."""
    ((_, completion),) = engine.generate([request])
    return FilledIn(whole_text(request, completion), completion.spans, completion)


def whole_text(request: Request, completion: Completion) -> str:
    """The text of a request with what was filled in, from its beginning to its end."""
    after = request.rest[-1]
    return request.prompt + completion.text + (after if isinstance(after, str) else "")
