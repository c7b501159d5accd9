"""LoRA (arXiv 2106.09685) for the training commands, by peft and in its layout.

Evaluate with `peft=OUTPUT_DIR` beside `pretrained=`, or merge: python -m
training.merge. See llada_plugins/models/lora.py for reading.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llada_plugins.files.tensors import save_tensors
from llada_plugins.models.families import FAMILIES
from llada_plugins.models.fingerprint import backbone_fingerprint
from llada_plugins.models.gptq import replace
from llada_plugins.models.layout import SAME_NAMES, Layout
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.lora import BACKBONE, BLOCK_LENGTH, PREFIX, WEIGHTS, targeted
from llada_plugins.models.mixture import StackedLinear
from llada_plugins.options.fields import Options, arg
from training.loop.trainer import Save

# of a block; the head is an ff_out as well
PROJECTIONS: tuple[str, ...] = (
    "q_proj",
    "k_proj",
    "v_proj",
    "attn_out",
    "ff_proj",
    "up_proj",
    "ff_out",
)
# of LLaDA2: one for queries, keys and values, and those of the expert that every token takes
OF_SOME: tuple[str, ...] = (
    "qkv_proj",
    "mixture.shared.ff_proj",
    "mixture.shared.up_proj",
    "mixture.shared.ff_out",
)
# of a block that has experts, each for all of them
STACKS: tuple[str, ...] = ("mixture.gate_up", "mixture.down")
DEFAULT_RANK = 8


class LoRA(NamedTuple):
    """What adapters are like."""

    rank: int
    alpha: float
    dropout: float
    # regular expressions, each for the whole of q_proj or of blocks.0.q_proj
    projections: tuple[str, ...]

    @property
    def scale(self) -> float:
        """Factor of B A in the adapted weight."""
        return self.alpha / self.rank

    @property
    def pattern(self) -> str:
        """PEFT's target_modules: whatever `projections` say, the projections of blocks alone."""
        return self._pattern((*PROJECTIONS, *OF_SOME))

    @property
    def stacks(self) -> str:
        """The same of stacks of experts, which PEFT does not know."""
        return self._pattern(STACKS)

    def _pattern(self, names: Sequence[str]) -> str:
        of_blocks = rf"(?=blocks\.\d+\.(?:{'|'.join(names)})$)"  # what the name must be
        return rf".*\.{of_blocks}(?:blocks\.\d+\.)?(?:{'|'.join(self.projections)})"


@dataclass(frozen=True, kw_only=True)
class LoRAOptions(Options):
    """Adapters instead of all weights."""

    lora: bool = arg(
        False,
        "train LoRA adapters of the blocks' projections in place of the weights; peft=OUTPUT_DIR "
        "evaluates them",
    )
    lora_r: int | None = arg(None, f"rank of the adapters (default: {DEFAULT_RANK})")
    lora_alpha: float | None = arg(
        None, "what B A is multiplied by, times the rank (default: twice the rank)"
    )
    lora_dropout: float | None = arg(
        None, "share of an adapter's inputs that are dropped in training, 0-1 (default: 0)"
    )
    lora_target: str | None = arg(
        None,
        "adapted projections of the blocks: names with commas between, or a regular expression "
        "for the "
        r"whole name, such as '.*_proj' or 'blocks\.[0-3]\..*' (default: all: "
        rf"{','.join(PROJECTIONS)}, of LLaDA2 {','.join(OF_SOME)}, of experts {','.join(STACKS)})",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        names = ("lora_r", "lora_alpha", "lora_dropout", "lora_target")
        given = [name for name in names if getattr(self, name) is not None]
        if given and not self.lora:
            raise ValueError(f"--{given[0]} needs --lora")
        if self.lora_r is not None and self.lora_r < 1:
            raise ValueError(f"--lora_r must be at least 1, got {self.lora_r}")
        if self.lora_alpha is not None and not 0 < self.lora_alpha < float("inf"):
            raise ValueError(f"--lora_alpha must be above 0, got {self.lora_alpha}")
        if self.lora_dropout is not None and not 0 <= self.lora_dropout < 1:
            raise ValueError(
                f"--lora_dropout must be at least 0 and below 1, got {self.lora_dropout}"
            )
        if self.lora_target is not None:
            self._check_target(self.lora_target)

    def _check_target(self, target: str) -> None:
        if target == "":
            raise ValueError(
                "--lora_target is empty: leave it out to adapt all projections, or give some of "
                f"{','.join(PROJECTIONS)}"
            )
        assert self.adapters is not None
        try:  # first by itself, else its parentheses could close those of the pattern
            re.compile(target)
            re.compile(self.adapters.pattern)
        except re.error as error:
            raise ValueError(
                f"--lora_target {target!r} is no regular expression: {error}"
            ) from None

    @property
    def adapters(self) -> LoRA | None:
        """What the options ask for; None without --lora."""
        if not self.lora:
            return None
        rank = self.lora_r or DEFAULT_RANK
        projections = every = (*PROJECTIONS, *OF_SOME, *STACKS)
        if self.lora_target:
            names = tuple(self.lora_target.split(","))
            projections = names if set(names) <= set(every) else (self.lora_target,)
        return LoRA(rank, self.lora_alpha or 2.0 * rank, self.lora_dropout or 0.0, projections)


def add_lora(model: LLaDA, lora: LoRA, generator: torch.Generator) -> None:
    """Freeze the model and add adapters that train, in place, in float32.

    Before training they change nothing.
    """
    config = _peft_config(lora)
    from peft import inject_adapter_in_model

    modules = dict(model.named_modules())
    linears, stacks = (targeted(modules, each) for each in (lora.pattern, lora.stacks))
    if not linears and not stacks:
        there = [
            each for each in (*PROJECTIONS, *STACKS) if targeted(modules, [f"blocks.0.{each}"])
        ]
        raise ValueError(
            f"--lora_target {','.join(lora.projections)!r} names no projection of a block: there "
            f"are {', '.join(there)}, in full blocks.0.{there[0]} to "
            f"blocks.{model.config.n_layers - 1}.{there[-1]}"
        )
    model.requires_grad_(False)
    if linears:
        inject_adapter_in_model(config, model)
    for name, stack in stacks.items():
        assert isinstance(stack, StackedLinear)
        replace(model, name, AdaptedStack(stack, lora))
    with torch.no_grad():  # as peft initialises them, but from the generator; lora_B stays zero
        for name, parameter in model.named_parameters():
            if ".lora_" in name:  # which peft gives the dtype of what they adapt
                parameter.data = parameter.data.float()
            if ".lora_A." in name:
                bound = parameter.shape[-1] ** -0.5
                drawn = torch.empty(parameter.shape, device=generator.device)
                parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))


def save_lora(model: LLaDA, lora: LoRA, base: str) -> Save:
    """Writes the adapters as PEFT does beside the family's published code.

    With them it writes to which weights they belong. model: as it was loaded. base:
    what --model said.
    """
    layout = FAMILIES[model.config.family].layout
    metadata = {BACKBONE: backbone_fingerprint(model)}
    if model.config.attention == "block_causal":
        metadata[BLOCK_LENGTH] = str(model.config.block_length)

    def save(adapted: nn.Module, folder: Path, state: Mapping[str, Tensor] | None) -> None:
        matrices = _matrices(adapted.state_dict() if state is None else state, layout)
        config = _peft_config(lora, base_model_name_or_path=base, inference_mode=True)
        if layout != SAME_NAMES:
            modules = {name.removeprefix(PREFIX).partition(".lora_")[0] for name in matrices}
            config.target_modules = modules
        config.save_pretrained(str(folder))
        # clones, for an expert's two halves have one A
        tensors = {name: each.detach().cpu().clone() for name, each in matrices.items()}
        save_tensors(tensors, folder / WEIGHTS, metadata)

    return save


def load_lora(model: nn.Module, folder: Path) -> None:
    """Fill the adapters from what `save_lora` wrote."""
    assert isinstance(model, LLaDA)
    saved = load_file(folder / WEIGHTS)
    layout = FAMILIES[model.config.family].layout
    for name, matrix in _matrices(model.state_dict(), layout).items():
        matrix.copy_(saved[name])


def _matrices(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The adapters' A and B in the state of an adapted model, views, by their names in a file."""
    found: dict[str, Tensor] = {}
    for name, down in state.items():
        module, is_adapter, _ = name.partition(".lora_A.")
        if not is_adapter:
            continue
        up = state[name.replace(".lora_A.", ".lora_B.")]
        for piece in layout.pieces(f"{module}.weight", up):
            stored = PREFIX + piece.stored.removesuffix(".weight")
            # the shares of a matrix are of its rows, which A has not
            found[f"{stored}.lora_A.weight"] = piece._replace(share=(0, 1)).of(down)
            found[f"{stored}.lora_B.weight"] = piece.of(up)
    return found


class AdaptedStack(nn.Module):
    """A stack of experts with an adapter for each; its parts are named as PEFT's are."""

    def __init__(self, stack: StackedLinear, lora: LoRA) -> None:
        super().__init__()
        number, outputs, inputs = stack.weight.shape
        device = stack.weight.device
        self.base_layer, self.scale = stack, lora.scale
        self.dropout = nn.Dropout(lora.dropout)
        down = StackedLinear(number, inputs, lora.rank)
        up = StackedLinear(number, lora.rank, outputs)
        nn.init.zeros_(up.weight)
        self.lora_A = nn.ModuleDict({"default": down})
        self.lora_B = nn.ModuleDict({"default": up})
        self.to(device)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """As StackedLinear's; the adapters are computed in their own dtype."""
        down, up = self.lora_A["default"], self.lora_B["default"]
        precision = next(down.parameters()).dtype
        change = up(down(self.dropout(x.to(precision)), ends), ends)
        output: Tensor = self.base_layer(x, ends)
        return output + (self.scale * change).to(output.dtype)


def _peft_config(lora: LoRA, **more: Any) -> Any:
    try:
        from peft import LoraConfig
    except ImportError:
        raise ImportError("--lora needs peft: pip install 'llada-plugins[train]'") from None
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft says int and takes any number
        lora_dropout=lora.dropout,
        target_modules=lora.pattern,
        **more,
    )
