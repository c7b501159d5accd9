"""Options of benchmarks.gpu."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from llada_plugins import SamplerConfig
from llada_plugins.models.placement import pick_device, pick_dtype
from llada_plugins.options.fields import arg

from . import speed_plot
from .command import check_counts, check_folder

# of sections; what users can least do without comes first
ORDER = (
    "steps",
    "published",
    "answers",
    "likelihood",
    "compiled",
    "compiled_answers",
    "block_causal",
    "quantised",
    "training",
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured, and where."""

    shape: Literal["tiny", "100m", "8b"] = arg(
        "8b", "width and depth of the model: tiny (to try the command), 100m or 8b (LLaDA-8B)"
    )
    device: str = arg("auto", "auto (a GPU if there is one), cpu, cuda or cuda:N")
    dtype: str = arg("auto", "auto (bfloat16 on a GPU, else float32), float32, bfloat16 or float16")
    prompt_length: int = arg(1024, "prompt in tokens; five shots of GSM8K have about as many")
    gen_length: int = arg(256, "answer in tokens")
    block_length: int = arg(32, "tokens of a block")
    num_masked: int = arg(16, "masked tokens left in the active block, the middle one")
    rows: list[int] = dataclasses.field(
        default_factory=lambda: [1, 8, 32], metadata={"help": "rows of a step"}
    )
    sections: list[str] = dataclasses.field(
        default_factory=lambda: list(ORDER), metadata={"help": f"of {', '.join(ORDER)}"}
    )
    repetitions: int = arg(8, "of each measurement")
    seconds: int = arg(420, "no section begins later than so many seconds after the start")
    threads: int = arg(1, "CPU threads")
    seed: int = arg(0, "of weights and tokens")
    json: str | None = arg(None, "file for the results as JSON")
    plot: str | None = arg(None, "file for a plot of the steps (.png, .pdf or .svg)")

    def __post_init__(self) -> None:
        check_counts(self, "prompt_length", "repetitions", "threads", "seconds")
        if not self.rows or min(self.rows) < 1:
            raise ValueError(f"rows must be numbers from 1 up, got {self.rows}")
        if not self.sections or set(self.sections) - set(ORDER):
            raise ValueError(
                f"sections must be some of {', '.join(ORDER)}, got "
                f"{' '.join(self.sections) or 'none'}"
            )
        if not 1 <= self.num_masked <= self.block_length:
            raise ValueError(
                f"num_masked must be from 1 to block_length ({self.block_length}), got "
                f"{self.num_masked}"
            )
        for name in ("json", "plot"):
            check_folder(name, getattr(self, name))
        speed_plot.check_suffix(self.plot)
        self.sampler()
        pick_dtype(self.dtype, pick_device(self.device))

    def sampler(self, **options: Any) -> SamplerConfig:
        """An answer in one step a block, unless options say otherwise."""
        common = dict(gen_length=self.gen_length, block_length=self.block_length)
        return SamplerConfig(**{**common, "steps": self.gen_length // self.block_length, **options})
