"""Log-likelihood bounds of answers, with their errors."""

from .estimate import LogLikelihood, log_likelihood

__all__ = ["LogLikelihood", "log_likelihood"]
