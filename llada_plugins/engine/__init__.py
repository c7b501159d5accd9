"""Text in, text and likelihoods out: what the doors and the commands call."""

from .config import EngineConfig
from .engine import Engine
from .request import Completion, Request

__all__ = ["Completion", "Engine", "EngineConfig", "Request"]
