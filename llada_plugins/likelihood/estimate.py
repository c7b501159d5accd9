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
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from llada_plugins.diffusion.arguments import check_functions, check_model, check_special
from llada_plugins.diffusion.batch_limit import BatchLimit
from llada_plugins.diffusion.denoiser import Denoiser, capacity, model_denoiser
from llada_plugins.diffusion.guidance import check_scale, guided
from llada_plugins.diffusion.token_rows import check_unmasked, token_pairs
from llada_plugins.models.families import FAMILIES, Family
from llada_plugins.models.folder import known_special_tokens
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.llada_config import LLaDAConfig
from llada_plugins.models.special_tokens import SpecialTokens
from llada_plugins.options.fields import settle

from .budget import Budget, budget, check_length
from .estimators import ESTIMATORS
from .greedy import greedy_matches
from .requests import Pair, Part, Question, Request, best_is_settled, questions
from .requests import requests as make_requests
from .rows import Owned, RowRunner, shared_rows

Mark = Literal["truncated", "skipped"]

logger = logging.getLogger(__name__)


class LogLikelihood(NamedTuple):
    """An estimate of log p(answer | prompt), a lower bound.

    With estimator="chain" it is the log-probability of one order.
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
        found: dict[str, float | str | None] = {
            "stderr": None if math.isnan(self.stderr) else self.stderr / unit,
            "num_forwards": self.num_forwards,
        }
        if self.overlong:
            found["overlong"] = self.overlong
        return found


def total(parts: Sequence[LogLikelihood]) -> LogLikelihood:
    """The log-likelihood of a text in parts, drawn independently: errors add in quadrature."""
    return LogLikelihood(
        sum(part.value for part in parts),
        math.hypot(*(part.stderr for part in parts)),
        sum(part.num_forwards for part in parts),
    )


@dataclass(frozen=True, kw_only=True)
class LikelihoodSettings:
    """How likelihoods are estimated; see `log_likelihood` for what the options mean."""

    limits: Budget
    estimator: str = "count"
    seed: int = 0
    cfg_scale: float = 0.0
    batch_size: int = 32
    batch_tokens: int | None = None
    at_once: BatchLimit | None = None  # in place of batch_size and batch_tokens
    greedy_check: bool = False
    block_length: int | None = None
    fill_block: bool = False

    def __post_init__(self) -> None:
        settle(self)
        check_scale(self.cfg_scale)
        if self.batch_size < 1 or (self.batch_tokens is not None and self.batch_tokens < 1):
            raise ValueError(
                f"batch_size and batch_tokens must be at least 1, got {self.batch_size} and "
                f"{self.batch_tokens}"
            )
        if self.block_length is not None and self.block_length < 1:
            raise ValueError(f"block_length must be at least 1, got {self.block_length}")


@torch.inference_mode()
def log_likelihood(
    model: LLaDA,
    pairs: Sequence[Pair],
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
    block_length: int | None = None,
    fill_block: bool = False,
    special: SpecialTokens | None = None,
    denoise: Denoiser | None = None,
) -> list[LogLikelihood]:
    """log p(answer | prompt) in nats for each (prompt ids, answer ids), in their order.

    estimator: one of ESTIMATORS. mc_num: rows drawn per request, or "auto:NATS": they
    double until the standard error is not above that, or the best of the choices with
    the same prompt is settled with probability mc_confidence (0.99), or mc_max (1024)
    rows are drawn. mc_batch: rows of a sweep of the published ones (8). batch_size: masked
    rows per forward, of any requests; batch_tokens: tokens of those rows, in place of
    batch_size. greedy_check: fill in `greedy`. Where the model's family shows an EOS after
    the answer, as Dream's code does, it is neither masked nor scored.

    Of a block-causal model the value is a sum over blocks, each given the clean tokens
    before it and estimated as an answer is; block_length: of its blocks (default: the
    checkpoint's). fill_block: is the answer followed by masks to its last block's end, as
    where it is decoded? Raises ValueError on an empty answer or one that does not fit the
    model's context, on these two beside full attention, and on arguments of another kind.
    """
    check_model(model)
    check_functions(denoise=denoise)
    settings = LikelihoodSettings(
        limits=budget(estimator, mc_num, mc_max, mc_confidence, mc_batch),
        estimator=estimator,
        seed=seed,
        cfg_scale=cfg_scale,
        batch_size=batch_size,
        batch_tokens=batch_tokens,
        greedy_check=greedy_check,
        block_length=block_length,
        fill_block=fill_block,
    )
    rows = token_pairs(pairs, model.config.num_embeddings)
    found = dict(iterate(model, rows, settings, special=special, denoise=denoise))
    return [found[number] for number in range(len(rows))]


@torch.inference_mode()
def iterate(
    model: LLaDA,
    pairs: Sequence[Pair],
    settings: LikelihoodSettings,
    *,
    special: SpecialTokens | None = None,
    denoise: Denoiser | None = None,
) -> Iterator[tuple[int, LogLikelihood]]:
    """The (index, estimate) of each pair, as questions finish; as `log_likelihood` otherwise."""
    special = known_special_tokens(model) if special is None else special
    check_special(special, model.config.num_embeddings)
    family = FAMILIES[model.config.family]
    after = _shown_after(family, special)
    _check_pairs(pairs, model.config.max_sequence_length - len(after), special.mask)
    if family.shift:
        _check_predicted(pairs)
    runner = row_runner(model, denoise or model_denoiser(model), settings, special)
    requests = make_requests(pairs, settings.seed, runner.block_length)
    parts = (part for request in requests for part in request.parts)
    check_length(
        settings.estimator, max((len(part.answer) for part in parts), default=0), settings.limits
    )
    longest = max((request.length for request in requests), default=1)
    rows = runner.at_once(runner.columns(longest))
    model.compiling.foresee(math.ceil(len(pairs) * settings.limits.first / rows))
    greedy = greedy_matches(runner, requests) if settings.greedy_check else None
    for request, estimate in _estimates(runner, requests, settings):
        if greedy is not None:
            matches, steps = greedy[request.number]
            num_forwards = estimate.num_forwards + steps
            estimate = estimate._replace(greedy=matches, num_forwards=num_forwards)
        yield request.number, estimate


def _check_pairs(pairs: Sequence[Pair], limit: int, mask_id: int) -> None:
    check_unmasked([prompt for prompt, _ in pairs], mask_id)
    check_unmasked(
        [answer for _, answer in pairs], mask_id, "answer", "it stands for a token and is none"
    )
    for number, (prompt, answer) in enumerate(pairs):
        if not len(answer):
            raise ValueError(f"answer {number} is empty: there is nothing to score")
        if len(prompt) + len(answer) > limit:
            raise ValueError(
                f"request {number} has {len(prompt)} + {len(answer)} tokens, more than the "
                f"model's context of {limit}"
            )


def row_runner(
    model: LLaDA, denoise: Denoiser, settings: LikelihoodSettings, special: SpecialTokens
) -> RowRunner:
    """What runs masked rows of the model under the settings."""
    if settings.cfg_scale > 0:
        denoise = guided(denoise, settings.cfg_scale, special.mask)
    planned = BatchLimit(capacity(settings.batch_size, settings.batch_tokens))
    after = _shown_after(FAMILIES[model.config.family], special)
    return RowRunner(
        denoise,
        special.mask,
        model.device,
        settings.at_once or planned,
        after,
        blocks_of(model.config, settings.block_length, settings.fill_block),
        model.config.max_sequence_length if settings.fill_block else 0,
    )


def blocks_of(
    config: LLaDAConfig, block_length: int | None = None, fill_block: bool = False
) -> int | None:
    """Tokens of a block of a model with block-causal attention, by default its own; else None.

    ValueError where an option of blocks is given for full attention.
    """
    if config.attention == "block_causal":
        return block_length or config.block_length
    for name, value in (("block_length", block_length), ("fill_block", fill_block or None)):
        if value is not None:
            raise ValueError(
                f"{name}={value} is for models with block-causal attention, and this one has full "
                "attention: leave it out"
            )
    return None


def _check_predicted(pairs: Sequence[Pair]) -> None:
    for number, (prompt, _) in enumerate(pairs):
        if not len(prompt):
            raise ValueError(
                f"request {number} has no prompt: this model predicts each token from the one "
                "before it, so nothing predicts the first: give a token before it, such as BOS"
            )


def _shown_after(family: Family, special: SpecialTokens) -> tuple[int, ...]:
    """What a row shows after its answer."""
    if not family.shows_eos:
        return ()
    if special.eos is None:
        raise ValueError("likelihoods of this family show an EOS after the answer: none is known")
    return (special.eos,)


def _estimates(
    runner: RowRunner, requests: Sequence[Request], settings: LikelihoodSettings
) -> Iterator[tuple[Request, LogLikelihood]]:
    """Round after round of rows, until no question is left that needs another."""
    limits, num_short = settings.limits, 0
    rounds = list(limits.rounds())
    pending = questions(requests)
    for draws in rounds:
        unsettled = []
        for question in _run_round(runner, pending, draws, settings):
            estimates = [_estimate(request) for request in question]
            certain = all(estimate.stderr <= limits.target for estimate in estimates)
            done = certain or best_is_settled(question, limits.confidence, len(rounds))
            if not done and draws != rounds[-1]:
                unsettled.append(question)
                continue
            if not done:
                num_short += 1
            for request, estimate in zip(question, estimates):
                request.forget()
                yield request, estimate
        pending = unsettled
    if num_short and limits.target:
        logger.warning(
            "%d questions reached mc_max=%d rows before the standard error of %g nats",
            num_short,
            limits.limit,
            limits.target,
        )


def _estimate(request: Request) -> LogLikelihood:
    value, stderr = request.value_and_error()
    return LogLikelihood(value, stderr, request.num_rows)


class _Waiting(NamedTuple):
    """A question, and those parts of its requests that still miss rows."""

    question: Question
    missing: set[Part]


def _run_round(
    runner: RowRunner, pending: Sequence[Question], draws: range, settings: LikelihoodSettings
) -> Iterator[Question]:
    """Draw and run one round of every question; yields those whose rows are all done.

    What is exact already stays as it is.
    """
    waiting: dict[Part, _Waiting] = {}
    for question in pending:
        drawn = [part for request in question for part in request.drawn()]
        waiting.update(dict.fromkeys(drawn, _Waiting(question, set(drawn))))
    together = [request for question in pending for request in question]
    rows = _rows_of_round(runner, together, draws, settings)
    for batch in runner.batches(runner.sheets(rows), lambda sheet: sheet.columns):
        for part in runner.score(batch):
            question, missing = waiting[part]
            missing.remove(part)
            if not missing:
                yield question


def _rows_of_round(
    runner: RowRunner, requests: Sequence[Request], draws: range, settings: LikelihoodSettings
) -> Iterator[Owned]:
    """The rows of a round, longest first; masks are drawn when their turn comes."""
    sharing: dict[tuple[int, int, int], list[tuple[Request, Part]]] = defaultdict(list)
    for request in sorted(requests, key=lambda request: -request.length):
        for part in request.drawn():
            sharing[part.key, part.shown, len(part.answer)].append((request, part))
    draw = ESTIMATORS[settings.estimator]
    for together in sharing.values():
        _, first = together[0]
        masks = draw(len(first.answer), draws, first.key, settings.limits.batch)
        for _, part in together:
            part.begin_round(masks)
        yield from shared_rows(runner, together, masks)
