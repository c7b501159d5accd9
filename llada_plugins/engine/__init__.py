"""Text in, text and likelihoods out: what the doors and the commands call."""
from .engine import Completion, Engine, EngineConfig, Request

__all__ = ["Completion", "Engine", "EngineConfig", "Request"]
