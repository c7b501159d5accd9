"""A process reward model at work: the probability that each step of a solution is right.

What to do with the scores (last, min, product, mean) is the caller's business, and so is
filling masks: a PRM judges finished text.

The model is a causal transformer. In it a step's score depends on nothing after it, so
one forward scores every step of a solution, and rows padded on the right need no
attention mask: what is read never sees the padding.
"""

from __future__ import annotations

import hashlib
import math
import time
from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from llada_plugins.models import text
from llada_plugins.models.quantization import Quantization
from llada_plugins.models.submodules import home
from llada_plugins.options.startup_messages import silenced

from .families import Encode, Encoded

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


# digests of all that is read up to a step's place -> P(right), as it was first computed
Heard: TypeAlias = dict[bytes, float]


class ScoreError(RuntimeError):
    """A process reward model gave no number."""


class TooLong(ValueError):
    """A solution that does not fit the model's context with its question."""


class StepClassifier(nn.Module):
    """A causal transformer and a head of two logits, wrong and right.

    Parameters are named as in the published files.
    """

    model: PreTrainedModel
    score: nn.Module  # hidden states (N, D) -> logits (N, 2)
    lm_head: nn.Linear  # of a language model, until choice_head has replaced it
    quantization: Quantization | None

    @silenced()
    def __init__(self, config: PretrainedConfig, head: Mapping[str, nn.Module]) -> None:
        from transformers import AutoModel

        super().__init__()
        self.model = AutoModel.from_config(config)
        for name, module in head.items():
            self.add_module(name, module)

    def vocabulary_weight(self) -> Tensor:
        """The head (V, D) of a language model; a tied one is the embedding's."""
        table = self.lm_head if hasattr(self, "lm_head") else self.model.get_input_embeddings()
        weight = table.weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, ids: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Logits (N, 2), fp32, at N places of ids (B, L)."""
        hidden = self.model(input_ids=ids, use_cache=False).last_hidden_state  # (B, L, D)
        logits: Tensor = self.score(hidden[rows, positions].float())
        return logits


def choice_head(vocabulary: Tensor, negative: int, positive: int) -> nn.Linear:
    """The two tokens that are compared, of a vocabulary's head (V, D)."""
    head = nn.Linear(vocabulary.shape[1], 2, bias=False)
    head.weight = nn.Parameter(vocabulary[[negative, positive]])
    return head


@dataclass(kw_only=True)
class StepScorer:
    """A process reward model, ready to score."""

    model: StepClassifier
    encoder: Encode
    family: str
    options: dict[str, str]  # of the family, as used
    source: str  # the folder, for messages
    vocabulary: int
    max_length: int
    batch_size: int
    num_calls: int = 0  # solutions that went through the model so far
    seconds: float = 0.0  # wall time of that

    def encode(self, question: str, steps: Sequence[str], name: str = "the solution") -> Encoded:
        """Ids and one read position per step.

        Raises ValueError, which calls the solution by `name`, where it cannot be scored.
        """
        if not question.strip():
            raise ValueError(
                f"{name} has an empty question: a PRM judges steps in the light of their question"
            )
        if not steps:
            raise ValueError(f"{name} has no steps: there is nothing to score")
        for place, step in enumerate(steps, 1):
            if not step.strip():
                raise ValueError(
                    f"step {place} of the {len(steps)} of {name} is empty: leave empty steps out"
                )
        encoded = self.encoder(question, steps)
        assert len(encoded.positions) == len(steps)
        if len(encoded.ids) > self.max_length:
            raise TooLong(
                f"{name} has {len(encoded.ids)} tokens with its question, the PRM takes "
                f"{self.max_length}: lower gen_length, "
                "or raise prm_max_length if it is below the PRM's context"
            )
        text.check_vocabulary(encoded.ids, self.vocabulary, self.source)
        return encoded

    def shortened(self, question: str, steps: Sequence[str], reserve: int = 0) -> str | None:
        """The question, or the longest end of it that fits beside the steps and `reserve` tokens.

        None where no end does.
        """

        def fits(start: int) -> bool:
            return len(self.encoder(question[start:], steps).ids) + reserve <= self.max_length

        if fits(0):
            return question
        # longer text may have a few tokens less: the search then ends at an end that fits, if
        # not at the very longest
        start = bisect_left(range(len(question)), True, key=fits)
        return question[start:] if question[start:].strip() and fits(start) else None

    def score(
        self,
        solutions: Sequence[tuple[str, Sequence[str]]],
        heard: Sequence[Heard] | None = None,
    ) -> list[list[float]]:
        """P(right) of every step, in [0, 1], for each (question, steps).

        Equal solutions are scored once. heard: for each, what was said of such steps, which
        holds, and is written to: so steps that read the same are not told apart by how a
        batch rounds. Every solution is checked before the first forward. Raises ScoreError
        where the model gives no number.
        """
        encoded = [
            self.encode(question, steps, f"solution {place}")
            for place, (question, steps) in enumerate(solutions, 1)
        ]
        keys = [_Key(tuple(ids), tuple(positions)) for ids, positions in encoded]
        if heard is None:
            heard = [{}] * len(keys)
        asked = [key for key, known in zip(keys, heard) if not known.keys() >= {*key.digests()}]
        scores = self._scores(asked)
        result = []
        for number, (key, known) in enumerate(zip(keys, heard), 1):
            if any(map(math.isnan, scores.get(key, ()))):
                raise ScoreError(
                    f"{self.source}: no number came out for solution {number}: "
                    "the PRM's weights are damaged, or too large for prm_dtype (bfloat16 and "
                    "float32 hold more than float16)"
                )
            for digest, value in zip(key.digests(), scores.get(key, ())):
                known.setdefault(digest, value)
            result.append([known[digest] for digest in key.digests()])
        return result

    def _scores(self, keys: Sequence[_Key]) -> dict[_Key, list[float]]:
        """P(right) of the steps of each solution, by its key; NaN where no number comes out."""
        distinct = sorted(dict.fromkeys(keys), key=lambda key: -len(key.ids))
        scores: dict[_Key, list[float]] = {}
        began = time.perf_counter()
        for first in range(0, len(distinct), self.batch_size):
            batch = distinct[first : first + self.batch_size]
            scores.update(zip(batch, self._forward(batch)))
        self.num_calls += len(distinct)
        self.seconds += time.perf_counter() - began
        return scores

    @torch.inference_mode()
    def _forward(self, batch: Sequence[_Key]) -> list[list[float]]:
        width = max(len(key.ids) for key in batch)
        device = home(self.model)
        # any id pads: what is read never sees it
        padded = [[*key.ids, *[0] * (width - len(key.ids))] for key in batch]
        places = [(row, place) for row, key in enumerate(batch) for place in key.positions]
        rows, positions = torch.tensor(places, device=device).unbind(-1)  # (N,) each
        logits = self.model(torch.tensor(padded, device=device), rows, positions)  # (N, 2)
        right = logits.softmax(-1)[:, 1]
        right = torch.where(logits.isfinite().all(-1), right, torch.nan)  # (N,)
        return [part.tolist() for part in right.split([len(key.positions) for key in batch])]


class _Key(NamedTuple):
    """What makes two solutions equal."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]

    def digests(self) -> list[bytes]:
        """Of what each step's score depends on: all that stands up to where it is read."""
        ids = memoryview(array("q", self.ids))
        return [
            hashlib.blake2b(ids[: place + 1], digest_size=16).digest() for place in self.positions
        ]
