"""config.json of a checkpoint as transformers' config classes, one for each model_type.

Every field is an attribute under its own name, so what is saved says what was loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace as with_fields
from typing import Any

from transformers import PretrainedConfig

from llada_plugins.files.json_files import short
from llada_plugins.models.families import FAMILIES
from llada_plugins.models.llada_config import LLaDAConfig

# names that transformers, PEFT and DeepSpeed ask for -> a dense LLaDA's
ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "num_hidden_layers": "n_layers",
    "intermediate_size": "mlp_hidden_size",
    "max_position_embeddings": "max_sequence_length",
}
# fields that change neither network nor tokens: of a run, or of where a config came from
OF_A_RUN = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "return_dict",
    "output_hidden_states",
    "output_attentions",
}


class CheckpointConfig(PretrainedConfig):
    """What a config.json says; a subclass for each model_type that FAMILIES has."""

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """As transformers does it, which warns of the name rope_scaling even where it is null."""
        stated = dict(config_dict)
        if stated.get("rope_scaling", 0) is None:
            del stated["rope_scaling"]
        return super().from_dict(stated, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """The value of a dense LLaDA's field, under the name that other models have for it."""
        alias = ALIASES.get(name)
        if alias is not None and alias in self.__dict__:
            return self.__dict__[alias]
        raise AttributeError(f"{type(self).__name__} has no field {name}")

    def said(self) -> dict[str, Any]:
        """The fields that are stated here, as config.json has them."""
        defaults = PretrainedConfig().to_dict()
        stated = self.to_dict()
        # absent, it would be transformers' default, which says nothing of this model
        kept = {"architectures", "tie_word_embeddings"}
        return {
            name: value
            for name, value in stated.items()
            if name in kept or name not in defaults or value != defaults[name]
        }

    def network_config(self) -> LLaDAConfig:
        """The config of the network, whose family `architectures` names.

        Raises ValueError where it names none, or fields are missing or not implemented.
        """
        named = set(self.architectures or ())
        of_type = {
            name: family
            for name, family in FAMILIES.items()
            if self.model_type in family.model_types
        }
        found = [name for name, family in of_type.items() if family.architectures & named]
        if not found:
            expected = sorted(each for family in of_type.values() for each in family.architectures)
            raise ValueError(
                f"architectures is {short(self.architectures)}, expected one of {expected}: state "
                f"it in the config, since model_type {self.model_type!r} does not tell which"
            )
        family = FAMILIES[found[0]]
        return with_fields(family.read_config(self.said(), type(self).__name__), family=found[0])


def _config_class(model_type: str) -> type[CheckpointConfig]:
    name = (
        "".join(part[0].upper() + part[1:] for part in model_type.split("-")) + "CheckpointConfig"
    )
    return type(name, (CheckpointConfig,), {"model_type": model_type, "__module__": __name__})


CONFIGS = {
    model_type: _config_class(model_type)
    for model_type in sorted({each for family in FAMILIES.values() for each in family.model_types})
}
globals().update({each.__name__: each for each in CONFIGS.values()})  # pickle looks them up here
