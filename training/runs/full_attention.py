"""Commands that train models with full attention alone say so before weights are read."""

from __future__ import annotations

from llada_plugins.models.families import with_attention
from llada_plugins.models.folder import read_config, resolve
from llada_plugins.models.llada_config import Attention


def check_full_attention(pretrained: str, attention: Attention | None, reason: str) -> None:
    """Raise ValueError on a block-causal model, before its weights and data are read.

    attention: what --attention says. reason: why the command does not train it.
    """
    folder = resolve(pretrained, option="--model")
    if with_attention(read_config(folder), attention, str(folder)).attention == "block_causal":
        raise ValueError(f"--model {pretrained} has block-causal attention, {reason}")
