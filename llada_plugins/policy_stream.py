"""UPS, the Unmasking Policy Stream of RemeDi (arXiv 2509.23653): a score h per position that says whether its token should stand.

Two kinds. The light head reads the final-norm hidden state of a frozen backbone and is a file of its own, which
`python -m training.remask_sft` makes and `ups=FOLDER` loads. RemeDi's official bi-tower is part of its checkpoint, feeds back into
the token stream, and is recognised by its tensors (checkpoint.py). How scores rank positions is confidence.py's business.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoint import load_tensors, read_json, save_tensors, tensor_names
from .denoiser import PADDING, Canvas, Denoiser, Prediction, gather
from .model import LLaDA

CONFIG, WEIGHTS = "ups_config.json", "ups.safetensors"
FINGERPRINT_VALUES = 64        # of each tensor: enough to tell two trained models apart, and 20 kB to read of an 8B model


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """What a light head is, and which backbone it was trained on."""

    d_model: int
    width: int             # hidden units; 0 = one linear map
    backbone: str          # fingerprint of the backbone's weights
    kind: str = "mlp"


class PolicyHead(nn.Module):
    """Linear-GELU-Linear from the final-norm hidden state (..., D) to a raw score h (...), fp32; sigmoid(h) is the confidence."""

    def __init__(self, d_model: int, width: int) -> None:
        super().__init__()
        self.d_model, self.width = d_model, width
        self.up = nn.Linear(d_model, width) if width else None
        self.out = nn.Linear(width or d_model, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden.to(self.out.weight.dtype)
        return self.out(hidden if self.up is None else F.gelu(self.up(hidden))).squeeze(-1).float()


def policy_denoiser(model: LLaDA, head: PolicyHead) -> Denoiser:
    """The plain denoiser with the head's score of every position of the window."""
    def denoise(canvas: Canvas, window: slice) -> Prediction:
        real = canvas.tokens != PADDING if canvas.padded else None
        hidden = model.hidden_states(canvas.tokens.clamp(min=0), real, inputs_embeds=canvas.embeds)[:, window]        # (B, W, D)
        return Prediction(lambda at: model.head(gather(hidden, at)), head(hidden))
    return denoise


def backbone_fingerprint(model: LLaDA) -> str:
    """Identifies the backbone's weights, whatever dtype they are loaded in: the first values of every tensor, rounded to bfloat16."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().flatten()[:FINGERPRINT_VALUES].to(torch.bfloat16).float().cpu()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()[:16]


def save_policy(head: PolicyHead, folder: Path, backbone: str, extra_config: Mapping[str, Any] | None = None) -> None:
    """Write ups_config.json and ups.safetensors; extra_config: further keys of the former, such as the training command."""
    folder.mkdir(parents=True, exist_ok=True)
    config = PolicyConfig(d_model=head.d_model, width=head.width, backbone=backbone)
    save_tensors({name: tensor.detach().cpu().float().contiguous() for name, tensor in head.state_dict().items()}, folder / WEIGHTS)
    text = json.dumps({**asdict(config), **(extra_config or {})}, indent=1, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def load_policy(folder: Path, model: LLaDA) -> PolicyHead:
    """The light head in `folder`, on the model's device; refuses one of another width or trained on another backbone."""
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG}: give the folder of a head made by python -m training.remask_sft")
    raw = read_json(folder / CONFIG)
    if raw.get("kind") != "mlp":
        raise ValueError(f"{folder / CONFIG}: kind is {raw.get('kind')!r}, only 'mlp' is known")
    if raw.get("d_model") != model.config.d_model:
        raise ValueError(f"{folder}: this UPS head reads hidden states of width {raw.get('d_model')}, the model's have {model.config.d_model}: "
                         "give the head that was trained on this model")
    if raw.get("backbone") != (fingerprint := backbone_fingerprint(model)):
        raise ValueError(f"{folder}: this UPS head was trained on another backbone (fingerprint {raw.get('backbone')}, this model's is {fingerprint}): "
                         "give pretrained= the model that it was trained on, or train a head with python -m training.remask_sft")
    with torch.device("meta"):
        head = PolicyHead(raw["d_model"], raw["width"])
    path = folder / WEIGHTS
    load_tensors(head, {name: path for name in tensor_names(path)}, device=model.device, dtype=torch.float32, source=folder)
    return head.eval().requires_grad_(False)
