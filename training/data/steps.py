"""Rows of reasoning steps with labels, for process reward models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llada_plugins.files.jsonl import read_rows
from llada_plugins.files.utf8 import check_text
from llada_plugins.rewards.families import token_class_ids
from training.loop.objectives import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORM = '{"prompt": text, "completions": [text, …], "labels": [true or false, …]}'


class StepRow(NamedTuple):
    """A question, the steps of one solution, and whether each is right."""

    prompt: str
    completions: list[str]
    labels: list[bool]


class StepExample(NamedTuple):
    """A token row; labels are 1 or 0 at the last token of each step's separator, else IGNORED."""

    input_ids: list[int]
    labels: list[int]


Encode = Callable[[StepRow], StepExample]


def step_encoder(tokenizer: PreTrainedTokenizerBase, separator: str) -> Encode:
    """Rows to token rows by the function that scores.

    Raises ValueError where the separator has no token.
    """
    token_class_ids(tokenizer, "", [], separator)

    def encode(row: StepRow) -> StepExample:
        ids, positions = token_class_ids(tokenizer, row.prompt, row.completions, separator)
        labels = [IGNORED] * len(ids)
        for position, label in zip(positions, row.labels, strict=True):
            labels[position] = int(label)
        return StepExample(ids, labels)

    return encode


def read_steps(path: Path) -> list[StepRow]:
    """The rows of a JSONL file; raises FileNotFoundError, or ValueError naming file and line."""
    return read_rows(path, _parse, FORM)


def collate_steps(pad_id: int) -> Callable[[Sequence[StepExample]], dict[str, Tensor]]:
    """Batches padded on the right: input_ids, attention_mask, labels and weight, all (B, L).

    weight is 1 where a step is read.
    """

    def padded(rows: Iterable[Sequence[int]], value: int) -> Tensor:
        return pad_sequence(
            [torch.tensor(row) for row in rows], batch_first=True, padding_value=value
        )

    def collate(examples: Sequence[StepExample]) -> dict[str, Tensor]:
        labels = padded((example.labels for example in examples), IGNORED)
        return {
            "input_ids": padded((example.input_ids for example in examples), pad_id),
            "attention_mask": padded(([1] * len(example.input_ids) for example in examples), 0),
            "labels": labels,
            "weight": (labels != IGNORED).float(),
        }

    return collate


def _parse(row: Any) -> StepRow:
    if not isinstance(row, dict) or row.keys() != set(StepRow._fields):
        found = (
            f"keys {sorted(row)}: leave others out" if isinstance(row, dict) else type(row).__name__
        )
        raise ValueError(f"expected {FORM}, found {found}")
    prompt, steps, labels = (row[name] for name in StepRow._fields)
    if not isinstance(prompt, str) or not _list_of(str, steps) or not _list_of(bool, labels):
        raise ValueError(f"expected {FORM}, found a value of another type")
    if len(steps) != len(labels):
        raise ValueError(
            f"{len(steps)} completions but {len(labels)} labels: give one label to each step"
        )
    if not steps:
        raise ValueError("completions is empty: a solution has at least one step")
    for text in (prompt, *steps):
        check_text(text)
    return StepRow(prompt, steps, labels)


def _list_of(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)
