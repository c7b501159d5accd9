"""The networks as transformers' model classes, one for each model_type: same weights and numbers.

A class holds one of our networks, whose modules are its own under the same names. What it
adds is what transformers, PEFT and accelerate ask of a model.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace as with_fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from llada_plugins.models.families import FAMILIES
from llada_plugins.models.initial import initialise
from llada_plugins.models.layer import Layer
from llada_plugins.models.llada import LLaDA
from llada_plugins.sampling.config import SamplerConfig

from .configs import CONFIGS, OF_A_RUN, CheckpointConfig
from .generation import Generated, answer
from .inputs import check_arguments, masked_loss, visible_columns
from .loading import load, parse, spread
from .saving import save

# arguments of save_pretrained that change nothing here
SAVED_ALIKE = {"save_function", "save_peft_format", "save_original_format"}


class CheckpointModel(PreTrainedModel, GenerationMixin):
    """A masked-diffusion language model with its head; a subclass for each model_type."""

    config: CheckpointConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # the Trainer gives num_items_in_batch to forward
    _no_split_modules = ["Block"]
    _supports_sdpa = True

    def __init__(self, config: CheckpointConfig, *, network: LLaDA | None = None) -> None:
        """network: of a loaded checkpoint; by default one of random weights."""
        super().__init__(config)
        if network is None:
            network = _random(config)
        # transformers asks for it under this name, and takes yes where a config does not say
        config.tie_word_embeddings = network.config.weight_tying
        self.model = network.model
        self._network = (network,)  # in a tuple, where it is no second owner of the modules
        self._as_loaded = config.to_dict()  # what differs from it was changed, and is saved
        self._generation_as_loaded = copy.deepcopy(self.generation_config)
        self.register_load_state_dict_pre_hook(_take_stored_names)
        self.post_init()

    @property
    def network(self) -> LLaDA:
        """The network that computes, with the modules that this model has."""
        network: LLaDA = self._network[0]
        if network.model is self.model:
            return network
        other = copy.copy(network)  # a replica of DataParallel has modules of its own
        other._modules = {"model": self.model}
        return other

    def init_weights(self) -> None:
        """Nothing: a network comes with its weights."""

    def tie_weights(self, *_: Any, **__: Any) -> None:
        """Nothing: a tied head multiplies by the embedding's own rows."""

    @classmethod
    def from_pretrained(  # type: ignore[override]  # versions differ in what they name
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *_: Any,
        config: CheckpointConfig | None = None,
        **arguments: Any,
    ) -> Any:
        """A checkpoint as load_model reads it, every tensor accounted for; see docs.

        Arguments are transformers', those that would have no effect are refused, and
        quantize= is as for load_model. On the CPU unless device_map says otherwise.
        """
        request = parse(Path(pretrained_model_name_or_path), arguments)
        config = config or _config_of(cls).from_pretrained(request.folder)
        network = load(request, config)
        config.dtype = network.dtype
        config.name_or_path = str(pretrained_model_name_or_path)
        model = cls(config, network=network).eval()
        if (request.folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(request.folder)
            model._generation_as_loaded = copy.deepcopy(model.generation_config)
        device_map = spread(model, network, request.placement)
        if device_map is not None:
            model.hf_device_map = device_map
        if request.adapter is not None:
            model.load_adapter(request.adapter)
        if request.output_loading_info:
            names = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
            return model, {name: [] for name in names}  # others than none are errors
        return model

    def save_pretrained(  # type: ignore[override]  # versions differ in what else they have
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        *,
        push_to_hub: bool = False,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        **arguments: Any,
    ) -> None:
        """Write a checkpoint in the published layout, auto_map and its code kept.

        An adapter that was added by load_adapter or add_adapter is saved alone, as
        transformers does it. state_dict: tensors by the names of this class.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False: only safetensors are written")
        if getattr(self, "_hf_peft_config_loaded", False):
            super().save_pretrained(save_directory, is_main_process, state_dict, **arguments)
            return
        hub = {name: value for name, value in arguments.items() if name not in SAVED_ALIKE}
        if hub.get("variant") is not None:
            raise ValueError("variant: a folder holds one set of weights; give another folder")
        if not is_main_process:
            return
        said, as_loaded = self.config.to_dict(), self._as_loaded
        generation = self.generation_config
        save(
            self.network,
            Path(save_directory),
            changed={
                name: value
                for name, value in said.items()
                if name not in OF_A_RUN and (name not in as_loaded or as_loaded[name] != value)
            },
            state_dict=state_dict,
            max_shard_size=max_shard_size,
            generation_config=generation if generation != self._generation_as_loaded else None,
        )
        if push_to_hub:
            self.push_to_hub(hub.pop("repo_id", Path(save_directory).name), **hub)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: object = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> MaskedLMOutput | tuple[Any, ...]:
        """Logits (B, L, V) of ids (B, L) or embeddings (B, L, D), as the published code has them.

        labels: (B, L), each at its own token's place, -100 = not counted: the loss is the
        mean cross-entropy of the others, whatever the logits are shifted by.
        output_hidden_states: n_layers + 1 of them, the last after the final norm.
        attention_mask: see `visible_columns`. use_cache: a forward has no cache to fill.
        """
        check_arguments(output_attentions=output_attentions, past_key_values=past_key_values)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        network = self.network
        given: dict[str, Any] = dict(
            input_ids=input_ids,
            attention_mask=visible_columns(attention_mask),
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
        )
        states: tuple[Tensor, ...] | None = None
        if output_hidden_states:
            states = tuple(network.hidden_states(**given, every_layer=True))
        hidden = network.hidden_states(**given) if states is None else states[-1]
        logits = network.head(hidden)
        loss = None
        if labels is not None:
            shift = FAMILIES[network.config.family].shift
            loss = masked_loss(logits, labels, shift=shift, num_items=num_items_in_batch)
        output = MaskedLMOutput(loss=loss, logits=logits, hidden_states=states)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    @torch.no_grad()
    def generate(  # type: ignore[override]  # its decoding has other arguments
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | SamplerConfig | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor | Generated:
        """Prompts (B, P) and their answers, (B, P + gen_length): generate() of llada_plugins.

        See `answer`. Rows of different lengths are padded, and attention_mask says where.
        """
        prompts = input_ids if inputs is None else inputs
        if prompts is None:
            raise ValueError("generate needs the prompts' token ids, (B, P)")
        config = self.generation_config if generation_config is None else generation_config
        return answer(self.network, prompts, attention_mask, config, options)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding table, or what an adapter put in its place."""
        return self.network.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put a table in the place of the embedding's."""
        self.network.transformer["wte"] = value

    def get_output_embeddings(self) -> nn.Module | None:
        """The head; None where it is tied to the embedding, and has no module of its own."""
        network = self.network
        return None if network.config.weight_tying else network.transformer["ff_out"]

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Put a head in the place of the head's."""
        self.network.transformer["ff_out"] = new_embeddings

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """As of transformers; the network's config follows."""
        table = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        rows, config = table.weight.shape[0], self._network[0].config
        if rows != config.num_embeddings:
            size = None if config.embedding_size is None else rows
            resized = with_fields(config, vocab_size=rows, embedding_size=size)
            resized.check("resize_token_embeddings")
            self._network[0].config = resized
            if config.embedding_size is not None:
                self.config.embedding_size = rows
        return table

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable[..., Any] | None = None,
        every_n_layers: int = 1,
    ) -> None:
        """Layers compute their activations again in the backward, always without reentry."""
        layers = [module for module in self.modules() if isinstance(module, Layer)]
        for number, layer in enumerate(layers):
            layer.recompute = enable and number % every_n_layers == 0

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Does any layer compute its activations again in the backward?"""
        return any(isinstance(module, Layer) and module.recompute for module in self.modules())


def _config_of(model: type[CheckpointModel]) -> type[CheckpointConfig]:
    return cast(type[CheckpointConfig], model.config_class)


def _random(config: CheckpointConfig) -> LLaDA:
    """A network of random weights, drawn as the global generator of torch says."""
    read = config.network_config()
    network = FAMILIES[read.family].module(read)
    device = network.embedding.weight.device
    if device.type != "meta":
        seed = int(torch.randint(2**62, (1,)))
        initialise(network, torch.Generator(device).manual_seed(seed))
    return network


def _take_stored_names(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, _: Any, strict: bool, *__: Any
) -> None:
    """Before load_state_dict: tensors under the names of the published layout get ours.

    A shard may hold a part of a tensor of ours. Not strict, that part is read.
    """
    network = cast(CheckpointModel, module).network
    layout = FAMILIES[network.config.family].layout
    for name, tensor in network.state_dict().items():
        if prefix + name in state_dict:
            continue
        pieces = layout.pieces(name, tensor)
        found = [piece for piece in pieces if prefix + piece.stored in state_dict]
        complete = len(found) == len(pieces)
        if not found or (not complete and (strict or tensor.is_meta)):
            continue
        stored = state_dict[prefix + found[0].stored]
        ours = tensor.detach().clone() if not complete else stored.new_empty(tensor.shape)
        for piece in found:
            piece.of(ours).copy_(state_dict.pop(prefix + piece.stored))
        state_dict[prefix + name] = ours


def _model_class(config: type[CheckpointConfig]) -> type[CheckpointModel]:
    name = config.__name__.removesuffix("Config") + "Model"
    return type(name, (CheckpointModel,), {"config_class": config, "__module__": __name__})


MODELS = [_model_class(config) for config in CONFIGS.values()]
globals().update({each.__name__: each for each in MODELS})  # pickle looks them up here
