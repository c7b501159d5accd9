"""llada-plugins: evaluate and train LLaDA-family masked-diffusion language models in
stock lm-eval and OpenCompass.

Importing this package imports neither harness nor transformers; what `__all__` lists is
the public API.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "load_model": "models.loading",
    "SpecialTokens": "models.special_tokens",
    "SamplerConfig": "sampling.config",
    "Sample": "sampling.sampler",
    "Step": "sampling.sampler",
    "generate": "sampling.generate",
    "log_likelihood": "likelihood.estimate",
    "LogLikelihood": "likelihood.estimate",
    "Canvas": "diffusion.denoiser",
    "Denoiser": "diffusion.denoiser",
    "Prediction": "diffusion.denoiser",
    "guided": "diffusion.guidance",
    "routed": "methods.router",
    "Engine": "engine.engine",
    "EngineConfig": "engine.config",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Public names are imported when asked for, so that the lm-eval hook and `--help`
    do not pay for torch.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
