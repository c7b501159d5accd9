"""Options of the kinds of fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llada_plugins.models.llada_config import Attention
from llada_plugins.options.fields import Options, arg

from .lora_adapters import LoRAOptions
from .presets import PRESETS, ROUTER_PRESETS


def check_blocks(
    attention: Attention | None,
    block_length: int | None,
    model: str | None,
    otherwise: str = "leave it out",
) -> None:
    """Raise ValueError on an attention, or a length of blocks, that no model has.

    otherwise: what to do where there is no `model`.
    """
    if block_length is not None and block_length < 1:
        raise ValueError(f"--block_length must be at least 1, got {block_length}")
    for name, value in (("attention", attention), ("block_length", block_length)):
        if value is not None and model is None:
            raise ValueError(
                f"--{name} is of a --model, and presets and models from scratch have full "
                f"attention: {otherwise}"
            )


@dataclass(frozen=True, kw_only=True)
class SFTOptions(Options):
    """What is trained on what."""

    preset: str | None = arg(
        None,
        f"a model from scratch with its data: {', '.join(PRESETS)}; it sets the other "
        "flags' defaults",
    )
    model: str | None = arg(
        None,
        "checkpoint folder or hub id to start from; 'tiny' is the model in the package; with "
        "--preset in place of the checkpoint that the preset starts from",
    )
    data: str | None = arg(
        None,
        'JSONL file of rows {"prompt", "completion"}, {"messages"}, {"conversations"} or '
        '{"input_ids", '
        '"prompt_length"}, or a hub name, or a folder that `datasets` loads, with such columns',
    )
    dataset_config: str | None = arg(None, "configuration of a hub data set")
    train_split: str = arg("train", "split to train on; a file has none")
    eval_split: str | None = arg(
        None, "split for the evaluation loss; a file has none: see --eval_data"
    )
    eval_data: str | None = arg(
        None, "JSONL file of the same form for the evaluation loss (see --eval_strategy)"
    )
    dtype: Literal["float32", "bfloat16"] = arg(
        "float32",
        "of weights that do not train, as under --lora, a light policy head or a router: bfloat16 "
        "halves their memory; what trains is float32, see --bf16 for mixed precision",
    )
    attention: Attention | None = arg(
        None,
        "full or block_causal, of a family whose checkpoints may have either, as A2D's do (mdlm, "
        "bd3lm); what is saved says it (default: the checkpoint's)",
    )
    block_length: int | None = arg(
        None,
        "tokens of a block of block-causal attention; what is saved says it (default: the "
        "checkpoint's)",
    )
    append_eos: bool = arg(
        True, "end every text completion with EOS; rows of ids are taken as they are"
    )
    seq_len: int | None = arg(
        None,
        "tokens after which rows lose the end of their answer; those whose prompt leaves it no "
        "room are left out; both are counted (default: rows too long for the model are an error)",
    )
    token_cache: str | None = arg(
        None,
        "folder for tokenised rows, which any run may share: found again by content of data and "
        "tokenizer, and options (default: a temporary file, made at every start)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset is None and self.model is None:
            raise ValueError("give --preset NAME, or --model DIR with --data FILE.jsonl")
        names = ("data", "dataset_config", "eval_split", "eval_data", "seq_len", "token_cache")
        of_data = [name for name in names if getattr(self, name) is not None]
        if self.preset is not None and of_data:
            raise ValueError(f"a preset brings its own data: leave --{of_data[0]} out")
        check_blocks(self.attention, self.block_length, self.model if self.preset is None else None)
        if self.eval_data is not None and self.eval_split is not None:
            raise ValueError("--eval_data and --eval_split are alternatives: give one")
        if self.dtype != "float32":
            self._check_dtype()

    def _check_dtype(self) -> None:
        if self.preset is not None:
            raise ValueError(f"a preset's model is float32: leave --dtype {self.dtype} out")
        if not self.freezes:
            raise ValueError(
                f"--dtype {self.dtype} is for weights that do not train, and here all do: leave it "
                "out, or add --lora; --bf16 is mixed precision"
            )

    @property
    def freezes(self) -> bool:
        """Do the checkpoint's own weights stay as they are?"""
        return True


@dataclass(frozen=True, kw_only=True)
class AdaptingOptions(LoRAOptions, SFTOptions):
    """What is trained on what, all weights or adapters."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora and self.preset is not None:
            raise ValueError(
                "--lora adapts a checkpoint: give --model DIR with --data FILE.jsonl in place of "
                "--preset"
            )

    @property
    def freezes(self) -> bool:
        return self.lora


@dataclass(frozen=True, kw_only=True)
class FineTuningOptions(AdaptingOptions):
    """What is trained on what, and with which masks."""

    complementary_masks: bool = arg(
        False,
        "show every row a second time with the opposite masks, and weigh all answer tokens alike "
        "(Fast-dLLM v2): twice the work an update",
    )


@dataclass(frozen=True, kw_only=True)
class RouterOptions(SFTOptions):
    """What is trained on what, and the router's shape."""

    preset: str | None = arg(
        None,
        f"a router with its backbone and data: {', '.join(ROUTER_PRESETS)}; it sets the other "
        "flags' defaults",
    )
    router_mode: str = arg(
        "residual",
        "residual: mask embedding + output, the identity before training; replace: the output "
        "alone",
    )
    router_layers: int = arg(1, "cross-attention layers")
    router_heads: int = arg(4, "attention heads")
    router_mlp: int = arg(0, "hidden units of the MLP after each attention; 0 = none")
    router_blocks: int = arg(
        1, "transformer blocks that get seeds, each its own, the first ones; 1 = only the input"
    )
    router_scaled: bool = arg(
        False,
        "seeds in units of the mask embedding's RMS, so that a learning rate suits embeddings of "
        "any size",
    )
    max_positions: int = arg(
        1024, "longest answer, and reach into the prompt from its end, in tokens"
    )
    no_prompt: bool = arg(
        False, "the control: a static bias for each answer position, learned without any prompt"
    )
