"""Log-likelihoods of answers under a masked-diffusion model, with their standard errors.

Masked rows of all requests share batches, longest first; equal rows run once; the head
works at scored positions only. A request's masks depend on the seed, its prompt and its
answer's length, so its value depends neither on the batch nor on the order beyond
rounding, and the choices of one question are compared under the same masks. Which masks
those are: estimators.py.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from llada_plugins.diffusion.denoiser import (
    Canvas,
    Denoiser,
    align,
    capacity,
    check_unmasked,
    log_total,
    model_denoiser,
)
from llada_plugins.diffusion.guidance import guided
from llada_plugins.diffusion.random_streams import request_key
from llada_plugins.models.folder import known_special_tokens
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.special_tokens import SpecialTokens

from .estimators import (
    ESTIMATORS,
    Budget,
    Masks,
    budget,
    check_length,
    is_settled,
    joined,
    mean_and_error,
    terms,
)

Mark = Literal["truncated", "skipped"]

logger = logging.getLogger(__name__)


class LogLikelihood(NamedTuple):
    """An estimate of log p(answer | prompt): a lower bound, or the log-probability of
    one order (estimator="chain").
    """

    value: float  # nats
    # standard error, nats; 0 where nothing was left to chance, nan where it is unknown
    stderr: float
    # different masked rows that it rests on, those shared with other requests included
    num_forwards: int
    # does greedy decoding give the answer? None where that was not asked
    greedy: bool | None = None
    overlong: Mark | None = None  # what an Engine did because context and answer did not fit

    def error(self, unit: int = 1) -> dict[str, float | str | None]:
        """What files hold beside the value: its standard error, its rows, and `overlong` if it is.

        The error is null where it is unknown, since JSON has no nan.

        unit: tokens, where the value that stands there is a mean over them.
        """
        stderr = None if math.isnan(self.stderr) else self.stderr / unit
        found = {"stderr": stderr, "num_forwards": self.num_forwards}
        return {**found, "overlong": self.overlong} if self.overlong else found


def total(parts: Sequence[LogLikelihood]) -> LogLikelihood:
    """The log-likelihood of a text in parts, drawn independently: their errors add in
    quadrature.
    """
    return LogLikelihood(
        sum(part.value for part in parts),
        math.hypot(*(part.stderr for part in parts)),
        sum(part.num_forwards for part in parts),
    )


@dataclass(eq=False)
class _Request:
    """One answer on its way: what was drawn for it, and what the model said."""

    number: int
    prompt: list[int]
    answer: list[int]
    masks: list[Masks] = field(default_factory=list)  # of each round
    # (S, n) float64 of each round, 0 where not scored
    log_p: list[Tensor] = field(default_factory=list)
    missing: int = 0  # rows of this round still to run

    def series(self) -> list[Tensor]:
        """The terms of every round."""
        every = terms(joined(self.masks), torch.cat(self.log_p))
        return list(every.split([len(each) for each in self.log_p]))

    @property
    def exact(self) -> bool:
        return bool(self.masks) and self.masks[-1].exact

    def estimate(self) -> LogLikelihood:
        value, stderr = mean_and_error(self.series(), self.masks[-1].sweep)
        rows = sum(len(each.masked.unique(dim=0)) for each in self.masks)
        return LogLikelihood(value, 0.0 if self.exact else stderr, rows)


class _Row(NamedTuple):
    """A masked sequence to run, and whose rows it is."""

    tokens: list[int]  # prompt and answer, mask ids in place
    start: int  # where the answer begins
    columns: list[int]  # answer tokens to score
    uses: list[tuple[_Request, int]]  # requests, and which of their rows this one is


@torch.inference_mode()
def log_likelihood(
    model: LLaDA,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    estimator: str = "count",
    mc_num: int | str = 128,
    seed: int = 0,
    cfg_scale: float = 0.0,
    batch_size: int = 32,
    batch_tokens: int | None = None,
    mc_max: int | None = None,
    mc_confidence: float | None = None,
    mc_batch: int | None = None,
    greedy_check: bool = False,
    special: SpecialTokens | None = None,
    denoise: Denoiser | None = None,
) -> list[LogLikelihood]:
    """log p(answer | prompt) in nats for each (prompt ids, answer ids), in their order.

    estimator: one of ESTIMATORS. mc_num: rows drawn per request, or "auto:NATS": they
    double until the standard error is not above that, or the best of the choices with
    the same prompt is settled with probability mc_confidence (0.99), or mc_max (1024)
    rows are drawn. mc_batch: rows of a sweep of `published` (8). batch_size: masked
    rows per forward, of any requests; batch_tokens: tokens of those rows, in place of
    batch_size. greedy_check: fill in `greedy`. Raises ValueError on an empty answer or
    one that does not fit the model's context.
    """
    found = dict(
        iterate(
            model,
            pairs,
            budget(estimator, mc_num, mc_max, mc_confidence, mc_batch),
            estimator=estimator,
            seed=seed,
            cfg_scale=cfg_scale,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            greedy_check=greedy_check,
            special=special,
            denoise=denoise,
        )
    )
    return [found[number] for number in range(len(pairs))]


@torch.inference_mode()
def iterate(
    model: LLaDA,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    limits: Budget,
    *,
    estimator: str,
    seed: int,
    cfg_scale: float,
    batch_size: int,
    batch_tokens: int | None,
    greedy_check: bool,
    special: SpecialTokens | None = None,
    denoise: Denoiser | None = None,
) -> Iterator[tuple[int, LogLikelihood]]:
    """The (index, estimate) of each pair, as questions finish; arguments as those of
    `log_likelihood`.
    """
    if batch_size < 1 or (batch_tokens is not None and batch_tokens < 1):
        raise ValueError(
            f"batch_size and batch_tokens must be at least 1, got {batch_size} and {batch_tokens}"
        )
    special = special or known_special_tokens(model)
    _check_pairs(pairs, model.config.max_sequence_length, special.mask)
    check_length(estimator, max((len(answer) for _, answer in pairs), default=0), limits)
    denoise = denoise or model_denoiser(model)
    if cfg_scale > 0:
        denoise = guided(denoise, cfg_scale, special.mask)
    requests = [
        _Request(number, list(prompt), list(answer))
        for number, (prompt, answer) in enumerate(pairs)
    ]
    size = (batch_size, batch_tokens)
    greedy = _greedy(denoise, requests, size, special.mask, model.device) if greedy_check else None
    pending, rounds, short = _questions(requests), list(limits.rounds()), 0
    for number, draws in enumerate(rounds):
        unsettled = []
        for question in _run(
            denoise, pending, draws, estimator, limits.batch, seed, size, special.mask, model.device
        ):
            estimates = [request.estimate() for request in question]
            done = all(estimate.stderr <= limits.target for estimate in estimates) or _settled(
                question, limits.confidence, len(rounds)
            )
            if not done and number < len(rounds) - 1:
                unsettled.append(question)
                continue
            short += not done
            for request, estimate in zip(question, estimates):
                if greedy is not None:
                    matches, steps = greedy[request.number]
                    estimate = estimate._replace(
                        greedy=matches, num_forwards=estimate.num_forwards + steps
                    )
                # 40 KB for 128 rows of 40 tokens, of maybe 40,000 requests
                request.masks.clear(), request.log_p.clear()
                yield request.number, estimate
        pending = unsettled
    if short and limits.target:
        logger.warning(
            "%d questions reached mc_max=%d rows before the standard error of %g nats",
            short,
            limits.limit,
            limits.target,
        )


def _check_pairs(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], limit: int, mask_id: int
) -> None:
    check_unmasked([prompt for prompt, _ in pairs], mask_id)
    for number, (prompt, answer) in enumerate(pairs):
        if not len(answer):
            raise ValueError(f"answer {number} is empty: there is nothing to score")
        if len(prompt) + len(answer) > limit:
            raise ValueError(
                f"request {number} has {len(prompt)} + {len(answer)} tokens, more than the "
                f"model's context of {limit}"
            )


def _is_question(prompt: Sequence[int]) -> bool:
    """Not so a lone BOS or the last token of a window before: their answers have
    nothing to do with each other.
    """
    return len(prompt) > 1


def _questions(requests: Sequence[_Request]) -> list[list[_Request]]:
    """Choices of a question are requests with the same prompt."""
    by_prompt: dict[tuple, list[_Request]] = defaultdict(list)
    for request in requests:
        by_prompt[
            tuple(request.prompt) if _is_question(request.prompt) else (request.number, "alone")
        ].append(request)
    return list(by_prompt.values())


def _settled(question: Sequence[_Request], confidence: float, num_rounds: int) -> bool:
    if len(question) < 2 or confidence >= 1:
        return False
    # an exact value stands beside every row of the others
    drawn = next(request.log_p for request in question if not request.exact)
    choices = [
        [torch.full((len(part),), request.estimate().value).double() for part in drawn]
        if request.exact
        else request.series()
        for request in question
    ]
    return is_settled(
        choices, [len(request.answer) for request in question], confidence, num_rounds
    )


def _run(
    denoise: Denoiser,
    questions: Sequence[list[_Request]],
    draws: range,
    estimator: str,
    sweep: int,
    seed: int,
    size: tuple[int, int | None],
    mask_id: int,
    device: torch.device,
) -> Iterator[list[_Request]]:
    """Draw and run one round of every question; yields those whose rows are all done.
    What is exact already stays as it is.
    """
    question_of = {
        request: number
        for number, question in enumerate(questions)
        for request in question
        if not request.exact
    }
    missing = Counter(question_of.values())
    units: dict[tuple, list[_Request]] = defaultdict(list)  # requests that share their masks
    for request in question_of:
        key = (
            request_key(seed, request.prompt)
            if _is_question(request.prompt)
            else request_key(seed, request.prompt, request.answer)
        )
        units[key, len(request.prompt), len(request.answer)].append(request)

    def rows() -> Iterator[_Row]:
        for (key, start, length), unit in sorted(
            units.items(), key=lambda item: -item[0][1] - item[0][2]
        ):
            masks = ESTIMATORS[estimator](length, draws, key, sweep)
            for request in unit:
                if masks.exact:
                    request.masks.clear(), request.log_p.clear()
                request.masks.append(masks)
                request.log_p.append(torch.zeros(masks.masked.shape, dtype=torch.float64))
                request.missing = len(masks.masked)
            yield from _rows(unit, masks, mask_id)

    for batch in _batches(rows(), *size):
        for request in _score(denoise, batch, device):
            number = question_of[request]
            missing[number] -= 1
            if not missing[number]:
                yield questions[number]


def _rows(unit: Sequence[_Request], masks: Masks, mask_id: int) -> list[_Row]:
    """The rows of requests with the same masks; equal ones once, such as wholly masked
    answers of different choices.
    """
    rows: dict[tuple, _Row] = {}
    for sample, (masked, scored) in enumerate(zip(masks.masked.tolist(), masks.scored.tolist())):
        columns = [position for position, counts in enumerate(scored) if counts]
        for request in unit:
            shown = tuple(
                None if hidden else token for token, hidden in zip(request.answer, masked)
            )
            if shown not in rows:
                answer = [mask_id if token is None else token for token in shown]
                rows[shown] = _Row(request.prompt + answer, len(request.prompt), columns, [])
            rows[shown].uses.append((request, sample))
    return list(rows.values())


def _batches(
    rows: Iterator[_Row], batch_size: int, batch_tokens: int | None
) -> Iterator[list[_Row]]:
    """Consecutive rows, the first of which is the longest."""
    at_once = capacity(batch_size, batch_tokens)
    for first in rows:
        yield [first, *islice(rows, at_once(len(first.tokens)) - 1)]


def _logits(
    denoise: Denoiser, rows: Sequence[_Row], device: torch.device
) -> tuple[Tensor, list[int]]:
    """Logits (P, V) at all columns of the first row, then of the second and so on,
    fp32; and where each row's begin.
    """
    tokens, padded = align([row.tokens for row in rows], device)  # (B, L), answers end together
    lengths = [len(row.tokens) - row.start for row in rows]
    width, length = max(lengths), tokens.shape[1]
    places = [
        (number, width - lengths[number] + column)
        for number, row in enumerate(rows)
        for column in row.columns
    ]
    # (P,) each
    which, at = torch.tensor(places, dtype=torch.long, device=device).view(-1, 2).unbind(-1)
    start = torch.tensor([length - own for own in lengths], device=device)
    prediction = denoise(Canvas(tokens, start, padded), slice(length - width, length))
    return prediction.logits_at(at, which).float(), list(
        accumulate((len(row.columns) for row in rows), initial=0)
    )[:-1]


def _score(denoise: Denoiser, rows: Sequence[_Row], device: torch.device) -> Iterator[_Request]:
    """Run a batch and note each request's log-probabilities; yields the requests that
    miss no more rows.
    """
    logits, first = _logits(denoise, rows, device)  # (P, V)
    uses = [(row, begin, *use) for row, begin in zip(rows, first) for use in row.uses]
    targets = [
        (begin + number, request.answer[column])
        for row, begin, request, _ in uses
        for number, column in enumerate(row.columns)
    ]
    # (U,) each
    place, token = torch.tensor(targets, dtype=torch.long, device=device).view(-1, 2).unbind(-1)
    values = (logits[place, token] - log_total(logits)[place]).double().cpu()
    for (row, _, request, sample), part in zip(
        uses, values.split([len(row.columns) for row, *_ in uses])
    ):
        request.log_p[-1][sample, row.columns] = part
        request.missing -= 1
        if not request.missing:
            yield request


def _greedy(
    denoise: Denoiser,
    requests: Sequence[_Request],
    size: tuple[int, int | None],
    mask_id: int,
    device: torch.device,
) -> list[tuple[bool, int]]:
    """For each request: does decoding the most confident token at a time give the
    answer (LLaDA's suffix_greedy_prediction), and forwards.

    A request leaves at the first token that is not the answer's; until then what is
    committed is the answer's own tokens.
    """
    hidden = [list(range(len(request.answer))) for request in requests]
    forwards = [0] * len(requests)
    active = sorted(
        range(len(requests)), key=lambda n: -len(requests[n].prompt) - len(requests[n].answer)
    )
    while active:
        following = []
        for batch in _batches(
            map(lambda n: _masked_row(requests[n], hidden[n], mask_id), active), *size
        ):
            logits, first = _logits(denoise, batch, device)  # (P, V)
            total = log_total(logits)
            logits[..., mask_id] = -torch.inf  # as in the sampler: the mask is no answer
            best, proposal = logits.max(-1)
            certain, proposal = (best - total).cpu(), proposal.tolist()
            for row, begin in zip(batch, first):
                column = int(certain[begin : begin + len(row.columns)].argmax())
                request, number = row.uses[0][0], row.uses[0][0].number
                forwards[number] += 1
                if proposal[begin + column] == request.answer[hidden[number][column]]:
                    del hidden[number][column]
                    following += [number] * bool(hidden[number])
        active = following
    return [(not left, steps) for left, steps in zip(hidden, forwards)]


def _masked_row(request: _Request, hidden: Sequence[int], mask_id: int) -> _Row:
    answer = [
        mask_id if position in hidden else token for position, token in enumerate(request.answer)
    ]
    return _Row(request.prompt + answer, len(request.prompt), list(hidden), [(request, 0)])
