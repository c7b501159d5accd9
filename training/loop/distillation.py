"""Distillation of a teacher's order of unmasking: its states, and what a student is to learn.

A pseudo-trajectory is the teacher's answer with the masks that it had at some moment of its
decoding (d3LLM, arXiv 2601.07568). The student learns to fill more of them at once, and to be
certain of what it has right (dParallel, arXiv 2509.26488).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .objectives import Loss, Objective
from .reading import PLAIN, Reading

OrderOf = Literal["teacher", "random"]
CertaintyOf = Literal["masked", "all"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How noise and window grow, and what a student is rewarded for.

    least_masked, most_masked: share of a window's tokens that is masked, drawn between the
    two, of which the lower rises to last_least_masked over a run. first_window, last_window:
    tokens of a window, which grows from one to the other. complement: learn what the
    teacher's state shows as well, from its complement. certainty: weight of the entropy at
    the temperature.
    """

    least_masked: float
    last_least_masked: float
    most_masked: float
    first_window: int
    last_window: int
    order: OrderOf
    complement: bool
    certainty: float
    temperature: float
    certainty_of: CertaintyOf

    def stage(self, progress: float) -> Stage:
        """What holds when this share of a run is done."""
        lowest = self.least_masked + progress * (self.last_least_masked - self.least_masked)
        width = self.first_window + progress * (self.last_window - self.first_window)
        return Stage(lowest, self.most_masked, int(width))


class Stage(NamedTuple):
    """A moment of a recipe."""

    least_masked: float
    most_masked: float
    window: int


class Progress(TrainerCallback):
    """The share of a run's updates that is done, 0 before the first, also in a resumed run."""

    def __init__(self) -> None:
        self.done = 0.0

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Called by the trainer before each update."""
        self.done = state.global_step / state.max_steps


class States(NamedTuple):
    """Answers in the middle of their decoding, and what is to be learned of them."""

    tokens: Tensor  # (B, L), mask_id where masked
    learned: Tensor  # (B, L) bool: masked tokens of the window


def pseudo_states(
    batch: dict[str, Tensor],
    stage: Stage,
    mask_id: int,
    generator: torch.Generator,
    *,
    order: OrderOf = "teacher",
) -> tuple[States, ...]:
    """A state of each row's trajectory, and its complement: masks and tokens change places.

    A window is drawn of those into which the answer is cut from its first token. Before it
    all is clean, after it all is masked. Of its n tokens the first int((1 - t) n) that the
    teacher unmasked stand, t drawn uniformly from the stage's range; one is masked in any case.
    """
    tokens, answer = batch["input_ids"], batch["weight"] > 0  # (B, L)
    num_rows, length = tokens.shape
    draws = torch.rand(num_rows, 2, generator=generator, device=generator.device)
    rank = batch["order"]
    if order == "random":
        rank = torch.rand(num_rows, length, generator=generator, device=generator.device)
    draws, rank = draws.to(tokens.device), rank.to(tokens.device)
    lengths = answer.sum(-1, keepdim=True)  # (B, 1)
    width = lengths.clamp(max=stage.window)
    num_windows = (lengths + width - 1) // width
    column = answer.long().cumsum(-1) - 1  # (B, L) of the answer; -1 in the prompt
    number = (draws[:, :1] * num_windows).long().minimum(num_windows - 1)
    window = answer & (column // width == number)
    after = answer & (column // width > number)
    size = window.sum(-1, keepdim=True)
    share = stage.least_masked + draws[:, 1:] * (stage.most_masked - stage.least_masked)
    standing = ((1 - share) * size).long().minimum(size - 1)
    within = rank.masked_fill(~window, length + 1).argsort(dim=-1, stable=True).argsort(-1)
    masked = window & (within >= standing)

    def state(learned: Tensor) -> States:
        return States(tokens.masked_fill(learned | after, mask_id), learned)

    return state(masked), state(window & ~masked)


def distilled(
    mask_id: int, recipe: Recipe, progress: Callable[[], float], reading: Reading = PLAIN
) -> Objective:
    """Cross-entropy of the teacher's tokens, and the entropy of those that are right.

    Cross-entropy: the mean over a row's masked tokens of the window, plus the same of the
    complementary state. Certainty: the mean entropy of softmax(logits / temperature) over a
    row's masked tokens whose best prediction is the teacher's; their number has no gradient.
    All is averaged over rows, where d3LLM and dParallel average over a batch's tokens: so the
    loss does not depend on how an update is divided. progress: the share of the run that is
    done; an evaluation has the recipe's last stage, and the whole range of noise.
    """

    def distilled_objective(
        model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> Loss:
        stage = recipe.stage(progress() if model.training else 1.0)
        if not model.training:
            stage = stage._replace(least_masked=recipe.least_masked)
        states = pseudo_states(batch, stage, mask_id, generator, order=recipe.order)
        if not recipe.complement:
            states = states[:1]
        noisy, learned = (torch.cat(each) for each in zip(*states))  # (S B, L)
        clean = batch["input_ids"].repeat(len(states), 1)
        given = reading.given(noisy, clean, learned)
        logits = model(given.tokens, **given.options, at=given.predicting(learned)).float()
        row = learned.nonzero()[:, 0]  # (N,) of the tokens that are learned
        certain = row >= 0
        if recipe.certainty_of == "masked":
            certain = row < len(batch["input_ids"])
        cost = _of_rows(logits, clean[learned], row, len(noisy), certain, recipe)
        weight = batch["weight"].sum(-1)  # (B,)
        return Loss((cost.view(len(states), -1).sum(0) * weight).sum(), weight.sum())

    return distilled_objective


def _of_rows(
    logits: Tensor, target: Tensor, row: Tensor, num_rows: int, certain: Tensor, recipe: Recipe
) -> Tensor:
    """The cost of each row (R,) from its tokens' logits (N, V); rows without tokens cost 0.

    row: (N,) to which each token belongs. certain: (N,) bool, whose entropy counts.
    """
    cross_entropy = F.cross_entropy(logits, target, reduction="none")
    cost = _mean_of_rows(cross_entropy, torch.ones_like(certain), row, num_rows)
    if not recipe.certainty:
        return cost
    log_p = (logits / recipe.temperature).log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    right = certain & (logits.argmax(-1) == target)
    return cost + recipe.certainty * _mean_of_rows(entropy, right, row, num_rows)


def _mean_of_rows(values: Tensor, counted: Tensor, row: Tensor, num_rows: int) -> Tensor:
    """The mean of each row's counted values, (num_rows,); 0 where none is."""
    total = values.new_zeros(num_rows).index_add(0, row, values * counted)
    number = values.new_zeros(num_rows).index_add(0, row, counted.to(values.dtype))
    return total / number.clamp(min=1)
