"""Data and scoring of the Nim tasks; the rules are the package's."""

from __future__ import annotations

from typing import Any

import datasets

from llada_plugins.tasks import nim

NUM_OOD = 500  # positions of each out-of-distribution split


def load(split: str = "test", num: int | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """Positions of a split; --metadata '{"num": 100}' takes the first 100. lm-eval
    passes all other metadata along too.
    """
    num = num or (nim.DEFAULT_NUM_TEST if split == "test" else NUM_OOD)
    return {
        "test": datasets.Dataset.from_list(
            [problem._asdict() for problem in nim.problems(split, num)]
        )
    }


def score(doc: dict[str, str], results: list[str]) -> dict[str, float]:
    """1 for any winning move, or '##' where there is none."""
    return {"acc": float(nim.is_winning(doc["position"], results[0]))}
