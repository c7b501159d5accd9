"""Options of benchmarks.generation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llada_plugins import SamplerConfig
from llada_plugins.models.compiling import COMPILE, Compile, check_compile
from llada_plugins.models.placement import pick_device, pick_dtype
from llada_plugins.options.fields import arg

from . import accuracy, peers, speed_plot
from .command import check_counts, check_folder


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured, and where."""

    shape: Literal["tiny", "100m", "8b"] = arg(
        "100m",
        "width and depth of the model: tiny (to try the command), 100m (279 M parameters with "
        "embeddings) or 8b (LLaDA-8B)",
    )
    device: str = arg("cpu", "auto (a GPU if there is one), cpu, cuda or cuda:N")
    dtype: str = arg(
        "auto",
        "of the measured steps: auto (bfloat16 on a GPU, else float32), float32, bfloat16 or "
        "float16",
    )
    threads: int = arg(1, "CPU threads; one is steadiest on a shared machine")
    prompt_length: int = arg(256, "prompt in tokens")
    gen_length: int = arg(256, "answer in tokens")
    block_length: int = arg(32, "tokens of a block")
    num_masked: int = arg(
        16, "masked tokens left in the active block, the middle one of the answer"
    )
    temperature: float = arg(0.7, "of the sampled forms")
    steps_measured: int = arg(5, "steps measured of each form, after one that is not")
    check_length: int = arg(
        32,
        "tokens of the answer, and of its prompt, that both loops decode greedily for comparison; "
        "even",
    )
    seed: int = arg(0, "of weights and tokens")
    peer: list[str] = dataclasses.field(
        default_factory=list,
        metadata={"help": "checkouts of LLaDA, Fast-dLLM or dllm to run beside ours"},
    )
    peer_repetitions: int = arg(3, "answers decoded by each loop of a peer, and by ours")
    compile: Compile = arg(
        "off",
        f"{', '.join(COMPILE)}: our layers beside peers, and those of a peer's loop that calls our "
        "model",
    )
    memory_length: int = arg(
        4096,
        "columns of the longest canvas whose step's memory is measured, the shortest has a 16th; "
        "0: none",
    )
    accuracy_puzzles: int = arg(
        200,
        "sudoku puzzles, and as many Nim positions, on which the approximations' accuracy is "
        "measured; 0: none",
    )
    json: str | None = arg(None, "file for the results as JSON")
    plot: str | None = arg(
        None, "file for a plot of speeds, floors and memory (.png, .pdf or .svg)"
    )

    def __post_init__(self) -> None:
        check_counts(self, "threads", "prompt_length", "steps_measured", "peer_repetitions")
        self._check_step()
        self._check_extras()
        self._check_peers()
        for name in ("json", "plot"):
            check_folder(name, getattr(self, name))
        speed_plot.check_suffix(self.plot)
        self.sampler(0)
        pick_dtype(self.dtype, pick_device(self.device))

    def _check_step(self) -> None:
        if not 1 <= self.num_masked <= self.block_length:
            raise ValueError(
                f"num_masked must be from 1 to block_length ({self.block_length}), got "
                f"{self.num_masked}"
            )
        if self.temperature <= 0:
            raise ValueError(
                f"temperature must be above 0, got {self.temperature}: temperature 0 is measured "
                "beside it anyway"
            )
        if self.check_length < 2 or self.check_length % 2:
            raise ValueError(f"check_length must be even and at least 2, got {self.check_length}")
        if self.gen_length % self.block_length:  # peers decode whole blocks only
            raise ValueError(
                f"gen_length ({self.gen_length}) must be a multiple of block_length "
                f"({self.block_length})"
            )

    def _check_extras(self) -> None:
        if self.memory_length < 0 or self.memory_length % (32 * self.block_length):
            raise ValueError(
                f"memory_length must be 0 or a multiple of 32 blocks ({32 * self.block_length}), "
                f"got {self.memory_length}"
            )
        if not 0 <= self.accuracy_puzzles <= accuracy.most_problems():
            raise ValueError(
                f"accuracy_puzzles must be from 0 to {accuracy.most_problems()}, the Nim "
                f"positions that there are, got {self.accuracy_puzzles}"
            )

    def _check_peers(self) -> None:
        answer = peers.NUM_BLOCKS * self.block_length
        if self.peer and self.prompt_length + self.gen_length <= answer:
            raise ValueError(
                f"peers decode {peers.NUM_BLOCKS} blocks after a prompt: prompt_length + "
                f"gen_length must exceed {answer}"
            )
        check_compile(self.compile, pick_device(self.device))
        for folder in self.peer:
            peers.kind(Path(folder))

    def sampler(self, temperature: float) -> SamplerConfig:
        """The measured step, as the only one of its block.

        What a step costs does not depend on how many tokens it keeps.
        """
        num_blocks = max(1, self.gen_length // self.block_length)
        return SamplerConfig(
            gen_length=self.gen_length,
            block_length=self.block_length,
            steps=num_blocks,
            temperature=temperature,
        )
