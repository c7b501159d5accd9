"""What the configs of small models in tests have in common with LLaDA's."""

from __future__ import annotations

from typing import Any

LLADA: dict[str, Any] = dict(
    max_sequence_length=64,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
    weight_tying=False,
    include_bias=False,
    include_qkv_bias=False,
    rope_full_precision=True,
)
