"""Terms of an estimate with their foreseeable part replaced by its expectation.

What the other rows foretell of a row serves as a control variate. docs/likelihood.md
derives the formulas, and this file uses its letters: φ features, A the regularised Gram
matrix, b coefficients, h leverage, r residuals.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .estimators import Masks, masked_share

# tokens on either side whose masks explain a token's log-probability; 4 did as well on
# text, 8 better on nim
NEIGHBOURS = 8
# λ of a token's level, in rows; 1 is as good on text, ten times the variance where
# levels are all there is
SHRINKAGE = 0.1
LEVEL, SHARE = 0, 1  # the first two features; one for each neighbour follows


def terms(masks: Masks, log_p: Tensor) -> Tensor:
    """Each row's term (S,) of the estimate, which is their mean.

    log_p: (S, n) float64, 0 where not scored. Where masks.share is given, the terms are

        T_i = w_i Σ_{j in M_i} r_ij  +  mean over i of S h_i (Σ_j b_j,level + share_i Σ_j b_j,share)

    with residuals r and coefficients b of a fit without row i. Their mean has the same
    expectation, since a row's mask does not depend on the other rows. What goes is the
    variance that comes from how many and which tokens a row happens to mask.
    """
    # a token ruled out makes the answer impossible, and nothing to predict
    if masks.share is None or not log_p.isfinite().all():
        return masks.weight * log_p.sum(-1)
    masked = masks.masked.double()
    fit = _fit_without_the_row(masked, log_p)
    width = masks.weight * masked.mean(-1)  # (S,) S times the interval's width: w_i k_i / n
    expected = width * (fit.level + fit.trend * masks.share)  # (S,)
    return masks.weight * fit.residual.sum(-1) + expected.mean()


class _Fit(NamedTuple):
    """For each row, the ridge regression over the others."""

    residual: Tensor  # (S, n): r_ij, 0 where row i does not mask token j
    level: Tensor  # (S,): Σ_j b_j,level
    trend: Tensor  # (S,): Σ_j b_j,share


def _fit_without_the_row(masked: Tensor, log_p: Tensor) -> _Fit:
    """Leave-one-out ridge regression of log_p (S, n) on the features of masked (S, n).

    One fit with all rows gives those without a row by its leverage (Sherman-Morrison,
    the statistic PRESS).
    """
    features = _features(masked) * masked[..., None]  # φ (S, n, F), 0 where the token is shown
    ridge = torch.ones(features.shape[-1], dtype=torch.float64)
    ridge[LEVEL] = SHRINKAGE
    gram = torch.einsum("snf,sng->nfg", features, features) + ridge.diag()
    inverse = torch.linalg.inv(gram)  # A⁻¹ (n, F, F)
    # b = A⁻¹ (Σ_i φ_ij v_ij + λ ℓ_i e_level), in two summands: ℓ_i differs from row to row
    own = torch.einsum("nfg,ng->nf", inverse, (features * log_p[..., None]).sum(0))
    prior = SHRINKAGE * _mean_of_others(masked, log_p)[:, None, None] * inverse[..., LEVEL]
    coefficients = own + prior  # (S, n, F)
    step = torch.einsum("snf,nfg->sng", features, inverse)  # A⁻¹ φ (S, n, F)
    leverage = (features * step).sum(-1)  # h = φᵀ A⁻¹ φ (S, n)
    residual = (log_p - (features * coefficients).sum(-1)) / (1 - leverage)
    without = (coefficients - step * residual[..., None]).sum(1)  # (S, F), summed over tokens
    return _Fit(residual, without[:, LEVEL], without[:, SHARE])


def _mean_of_others(masked: Tensor, log_p: Tensor) -> Tensor:
    """ℓ_i (S,): the mean log-probability of all tokens that the other rows mask."""
    total = log_p.sum() - log_p.sum(-1)
    count = masked.sum() - masked.sum(-1)
    return total / count.clamp(min=1)


def _features(masked: Tensor) -> Tensor:
    """φ (S, n, F) of each row and token: 1; its masked share; which neighbours are masked.

    The latter have mean 0 over the masks of a count that mask the token, and scale with
    distance to the power -1/2, so that near ones explain more.
    """
    num_rows, length = masked.shape
    share = masked_share(masked.sum(-1), length)[:, None]  # (S, 1)
    reach = min(NEIGHBOURS, length - 1)
    rate = (share + 1) / 2  # probability that another token is masked, given that this one is
    around = F.pad(masked - rate, (reach, reach)).unfold(1, 2 * reach + 1, 1)  # (S, n, 2 reach + 1)
    distance = torch.arange(-reach, reach + 1).abs().double()
    near = around * distance.rsqrt().where(distance > 0, 0)  # the token is no neighbour of itself
    level = torch.ones(num_rows, length, 1).double()
    return torch.cat([level, share.expand(-1, length)[..., None], near], -1)
