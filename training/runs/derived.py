"""Checkpoints that are made of others, without training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from llada_plugins.files.atomic import whole_folder
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.loading import save_model

from .jobs import copy_tokenizer


def write_derived(
    model: LLaDA, output: Path, made_of: Mapping[str, Any], tokenizer_folder: Path
) -> None:
    """Write a whole checkpoint or nothing; made_of: what its config.json says of its making.

    OSError where the folder cannot be written.
    """
    try:
        with whole_folder(output) as partial:
            save_model(model, partial, {"training": made_of})
            copy_tokenizer(tokenizer_folder, partial)
    except (OSError, SafetensorError) as error:  # the second from save_file, on a full disk
        raise OSError(f"output {output} could not be written ({error})") from error
