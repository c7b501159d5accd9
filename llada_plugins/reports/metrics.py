"""How well a confidence tells clean tokens from incorrect ones.

training.remask_sft logs these numbers, and reports show them.
"""

from __future__ import annotations

from torch import Tensor


def auc(score: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve (Mann-Whitney).

    It is the probability that a positive scores above a negative, ties counting one half.
    score: any shape. positive: bool of that shape. nan where one of the two kinds is absent.
    """
    score, positive = score.flatten().double(), positive.flatten().bool()
    num_positive = int(positive.sum())
    num_negative = positive.numel() - num_positive
    if not num_positive or not num_negative:
        return float("nan")
    value, count = score.unique(return_inverse=True, return_counts=True)[1:]
    # from 1; tied scores share the mean of their ranks
    rank = (count.cumsum(0) - (count.double() - 1) / 2)[value]
    return float(
        (rank[positive].sum() - num_positive * (num_positive + 1) / 2)
        / (num_positive * num_negative)
    )


def expected_calibration_error(probability: Tensor, label: Tensor, bins: int = 15) -> float:
    """Mean distance between stated probability and share of clean tokens (arXiv 1706.04599).

    Over bins of equal width, weighted by size, as Guo et al. have it. probability: 0-1, any
    shape. label: of that shape, bool, or a probability where the truth is soft. nan without
    tokens.
    """
    probability, label = probability.flatten().double(), label.flatten().double()
    if not probability.numel():
        return float("nan")
    number = (probability * bins).long().clamp(0, bins - 1)
    gap = probability.new_zeros(bins).index_add_(0, number, probability - label)
    return float(gap.abs().sum() / probability.numel())


def confusion(probability: Tensor, label: Tensor, cut: float = 0.5) -> dict[str, int]:
    """Counts tp, fp, tn, fn of calling a token clean where its probability reaches `cut`.

    Positive = clean. probability: 0-1, any shape. label: bool of that shape, True = clean.
    """
    called, clean = probability.flatten() >= cut, label.flatten().bool()
    counts = {
        "tp": called & clean,
        "fp": called & ~clean,
        "tn": ~called & ~clean,
        "fn": ~called & clean,
    }
    return {name: int(tokens.sum()) for name, tokens in counts.items()}
