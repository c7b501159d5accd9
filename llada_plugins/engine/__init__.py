"""Text in, text and likelihoods out: what the doors and the commands call."""

from .config import EngineConfig
from .engine import Completion, Engine, Request

__all__ = ["Completion", "Engine", "EngineConfig", "Request"]
