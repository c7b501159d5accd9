"""Merge a LoRA adapter into the model that it was trained on: a complete checkpoint.

    python -m training.merge --model DIR --peft ADAPTER_DIR --output DIR

Heads, routers and PRMs beside the model are left out: they belong to the weights as
they were.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llada_plugins.files.atomic import check_empty
from llada_plugins.models.folder import resolve, stored_dtype
from llada_plugins.models.llada_config import Attention
from llada_plugins.models.loading import load_model
from llada_plugins.models.lora import CONFIG
from llada_plugins.models.placement import DTYPES
from llada_plugins.options.command_line import run_command
from llada_plugins.options.fields import arg
from training.runs.derived import write_derived


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """What is merged, and where it goes."""

    model: str = arg(
        help="checkpoint folder or hub id that the adapter was trained on; 'tiny' is the model in "
        "the package"
    )
    peft: str = arg(
        help="folder or hub id of a LoRA adapter, made by python -m training.sft --lora or by peft"
    )
    output: str = arg(help="folder for the merged checkpoint; must be empty or absent")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = arg(
        "auto",
        "of the merged weights: auto (the model's, as it is stored) or one of "
        f"{', '.join(DTYPES)}; the sum is computed in float32",
    )
    attention: Attention | None = arg(
        None,
        "full or block_causal, as the adapter was trained, of a family whose checkpoints may have "
        "either, as A2D's do; the merged checkpoint says it (default: the checkpoint's)",
    )


def merge(options: MergeOptions) -> str:
    """Write the merged checkpoint; returns where."""
    folder, output = resolve(options.model, option="--model"), Path(options.output)
    check_empty(output)
    dtype = stored_dtype(folder) if options.dtype == "auto" else options.dtype
    model = load_model(
        folder, device="cpu", dtype=dtype, peft=options.peft, attention=options.attention
    )
    merged = {"model": options.model, "peft": options.peft, "dtype": dtype}
    write_derived(model, output, {"merged": merged}, folder)
    return f"{output}: {options.model} with {Path(options.peft) / CONFIG} merged, {dtype}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(MergeOptions, "python -m training.merge", merge, argv)


if __name__ == "__main__":
    sys.exit(main())
