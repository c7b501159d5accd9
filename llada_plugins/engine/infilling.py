"""The spans of a text are filled in: its tokens, its answer, the best of several lengths.

Of the lengths of a span, marked_text.py, that one is taken whose decoded tokens have the
highest mean log probability, each at the step that kept it: with one token a step that is
the chain rule in the order of decoding, by length, as translations of different lengths are
compared (Wu et al., arXiv 1609.08144). An end token in a span cuts the span's text there.

The strings between spans are tokenised one by one, so that no token lies on a border.
"""

from __future__ import annotations

import itertools
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
from llada_plugins.sampling.step import Step
from llada_plugins.tasks.spans import WRITTEN

from .asked import Asked
from .marked_text import Piece, whole_text
from .request import Completion, Encoded, Group, Request, check_requests

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .engine import Engine


class FilledIn(NamedTuple):
    """A text whose spans are filled in."""

    text: str  # all of it
    spans: tuple[str, ...]
    completion: Completion  # what it cost


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
    if is_open and request.sampler.causal:
        raise ValueError(
            "a span's length is chosen by how well its tokens go with the text around them, and "
            "here they do not see the text after their block: name one length"
        )
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


def columns_after(request: Request, given: Given | None) -> int:
    """Columns of the canvas that what is known after the answer takes, beside its blocks."""
    return 0 if given is None else request.sampler.blocks.columns_after(len(given.after))


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
    check_requests(requests)
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
