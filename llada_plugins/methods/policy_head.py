"""UPS, the Unmasking Policy Stream of RemeDi (arXiv 2509.23653), as a light head.

A policy stream gives a score h per position that says whether its token should stand.
The light head reads the final-norm hidden state of a frozen backbone and is a file of
its own, which `python -m training.remask_sft` makes and `ups=FOLDER` loads. Not here:
RemeDi's own bi-tower, which is part of its checkpoint and feeds back into the token
stream (models/bitower.py), and how scores rank positions (sampling/confidence.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llada_plugins.diffusion.denoiser import Denoiser, model_denoiser
from llada_plugins.files.json_files import one_of, whole
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.llada_config import WIDTH

from .addon import AddOn, check_addon, fill_addon, read_addon, write_addon

CONFIG, WEIGHTS = "ups_config.json", "ups.safetensors"
UPS_HEAD = AddOn(
    CONFIG,
    WEIGHTS,
    "UPS head",
    "head",
    "reads hidden states",
    "training.remask_sft",
    {"d_model": WIDTH, "width": whole(0, 2**20), "kind": one_of("mlp")},
)


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """What a light head is, and which backbone it was trained on."""

    d_model: int
    width: int  # hidden units; 0 = one linear map
    backbone: str  # fingerprint of the backbone's weights
    kind: str = "mlp"


class PolicyHead(nn.Module):
    """Linear-GELU-Linear from the final-norm hidden state (..., D) to a raw score h (...).

    h is fp32; sigmoid(h) is the confidence.
    """

    def __init__(self, d_model: int, width: int) -> None:
        super().__init__()
        self.d_model, self.width = d_model, width
        self.up = nn.Linear(d_model, width) if width else None
        self.out = nn.Linear(width or d_model, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden.to(next(self.out.parameters()).dtype)
        if self.up is not None:
            hidden = F.gelu(self.up(hidden))
        score: Tensor = self.out(hidden)  # (..., 1)
        return score.squeeze(-1).float()


def policy_denoiser(model: LLaDA, head: PolicyHead) -> Denoiser:
    """The plain denoiser with the head's score of every position of the window."""
    return model_denoiser(model, head)


def save_policy(
    head: PolicyHead, folder: Path, backbone: str, extra_config: Mapping[str, Any] | None = None
) -> None:
    """Write ups_config.json and ups.safetensors.

    extra_config: further keys of the former, such as the training command.
    """
    config = PolicyConfig(d_model=head.d_model, width=head.width, backbone=backbone)
    write_addon(UPS_HEAD, head, folder, {**asdict(config), **(extra_config or {})})


def load_policy(folder: Path, model: LLaDA) -> PolicyHead:
    """The light head in `folder`, on the model's device.

    Refuses one of another width, or trained on another backbone.
    """
    raw = read_addon(UPS_HEAD, folder)
    check_addon(UPS_HEAD, raw, folder, model)
    with torch.device("meta"):
        head = PolicyHead(raw["d_model"], raw["width"])
    return fill_addon(UPS_HEAD, head, folder, model)
