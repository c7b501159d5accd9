"""llada-plugins: masked-diffusion language models in stock lm-eval and OpenCompass.

It evaluates and trains LLaDA and its relatives. Importing this package imports neither
harness nor transformers; what `__all__` lists is the public API.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .diffusion.denoiser import Canvas, Denoiser, Prediction
    from .diffusion.guidance import guided
    from .engine.config import EngineConfig
    from .engine.engine import Engine
    from .likelihood.estimate import LogLikelihood, log_likelihood
    from .methods.routing import routed
    from .models.loading import load_model
    from .models.special_tokens import SpecialTokens
    from .sampling.config import SamplerConfig
    from .sampling.draft import Sample
    from .sampling.generate import generate
    from .sampling.infilling import Infilled, infill
    from .sampling.step import Step
    from .sampling.trace import Trace

# written out, since type checkers do not run code
__all__ = [
    "load_model",
    "SpecialTokens",
    "SamplerConfig",
    "Sample",
    "Step",
    "Trace",
    "generate",
    "infill",
    "Infilled",
    "log_likelihood",
    "LogLikelihood",
    "Canvas",
    "Denoiser",
    "Prediction",
    "guided",
    "routed",
    "Engine",
    "EngineConfig",
]
_HOMES = {
    "load_model": "models.loading",
    "SpecialTokens": "models.special_tokens",
    "SamplerConfig": "sampling.config",
    "Sample": "sampling.decode",
    "Step": "sampling.step",
    "Trace": "sampling.trace",
    "generate": "sampling.generate",
    "infill": "sampling.infilling",
    "Infilled": "sampling.infilling",
    "log_likelihood": "likelihood.estimate",
    "LogLikelihood": "likelihood.estimate",
    "Canvas": "diffusion.denoiser",
    "Denoiser": "diffusion.denoiser",
    "Prediction": "diffusion.denoiser",
    "guided": "diffusion.guidance",
    "routed": "methods.routing",
    "Engine": "engine.engine",
    "EngineConfig": "engine.config",
}

if not TYPE_CHECKING:  # to a type checker it would say that every name exists, as Any

    def __getattr__(name: str) -> object:
        """The public name, imported when asked for: the hook and --help need no torch."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
