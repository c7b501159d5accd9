"""Options that say whether, where and how much of decoding is written down."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llada_plugins.options.fields import Options, arg

SUFFIX = "trajectories.jsonl.gz"  # how the names of these files end


@dataclass(frozen=True, kw_only=True)
class RecordOptions(Options):
    """What is written down of how answers come about."""

    record: Literal["trajectory"] | None = arg(
        None,
        "trajectory: write down every step of answers, for python -m llada_plugins.view; see "
        "docs/view.md",
    )
    record_file: str | None = arg(
        None,
        f"the file of record, which is appended to; its name ends in {SUFFIX} (default: beside the "
        "samples of lm-eval, the predictions of OpenCompass, the metrics of evaluate)",
    )
    record_samples: int = arg(
        1000, "answers written down at most: those asked first, so many a process and file"
    )
    record_tokens: int = arg(
        1024, "of each answer, steps in blocks that begin after so many tokens are left out"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("record_samples", "record_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.record is not None and self.record_file is None:
            raise ValueError(
                "record=trajectory does not know where to write: give record_file=FILE, or in a "
                "harness an output folder (lm_eval --output_path)"
            )
        if self.record_file is not None and self.record is None:
            raise ValueError(
                f"record_file={self.record_file!r} has no effect without record=trajectory"
            )
        if self.record_file is not None and not self.record_file.endswith(SUFFIX):
            raise ValueError(
                f"record_file={self.record_file!r}: its name must end in {SUFFIX}, by which "
                "llada_plugins.view finds it in a folder"
            )
        if self.record_file is not None and Path(self.record_file).is_dir():
            raise ValueError(f"record_file={self.record_file!r} is a folder: give a file in it")


def with_file(options: dict[str, Any], file: Path | None) -> dict[str, Any]:
    """The options; with this file, if there is one, where they want a record and name none."""
    if file is None or options.get("record") is None or options.get("record_file") is not None:
        return options
    return {**options, "record_file": str(file)}
