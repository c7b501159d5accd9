"""Checkpoints in transformers' own classes: `import llada_plugins.hf`, then AutoModel.

The import registers a config and a model class for each model_type that FAMILIES has, so that
AutoConfig, AutoModel, AutoModelForCausalLM and AutoModelForMaskedLM load these checkpoints
without trust_remote_code, and AutoTokenizer loads Dream's tokenizers. Without it nothing of
transformers changes.
"""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
)

from .huggingface.configs import CONFIGS, CheckpointConfig
from .huggingface.generation import Generated
from .huggingface.models import MODELS, CheckpointModel
from .huggingface.tokenizers import DreamTokenizer

__all__ = ["CheckpointConfig", "CheckpointModel", "Generated", "register"]


def register() -> None:
    """Tell transformers' Auto classes of the classes here; done by the import of this module."""
    for config, model in zip(CONFIGS.values(), MODELS):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        for auto in (AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM):
            auto.register(config, model, exist_ok=True)
    dream = CONFIGS["Dream"]
    AutoTokenizer.register(dream, fast_tokenizer_class=DreamTokenizer, exist_ok=True)


register()
