"""Problems of a report on an unmasking policy, and its options."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from llada_plugins.engine.engine import Engine
from llada_plugins.files.jsonl import read_pairs
from llada_plugins.options.fields import arg
from llada_plugins.tasks import sudoku

from .report_page import HELP

# plain never masks a token again
SOURCES = ("plain", "tps_prob", "ups", "ups_all", "random", "entropy", "margin")


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What is measured on what."""

    output: str = arg(help="folder for the report; must be empty or absent")
    pretrained: str | None = arg(
        None, "checkpoint folder or hub id (default: the tiny model shipped in the package)"
    )
    ups: str | None = arg(
        None, "folder of the policy head (default: 'ups' in the checkpoint's folder)"
    )
    data: str | None = arg(
        None,
        'JSONL file of rows {"prompt": text, "completion": text} (default: 4x4 sudoku\'s test '
        "problems)",
    )
    append_eos: bool = arg(True, "end every completion of --data with EOS, as training does")
    num: int = arg(500, "problems at most")
    sources: list[str] = dataclasses.field(
        default_factory=lambda: ["plain", "tps_prob", "random", "ups"],
        metadata={"help": f"samplers to decode with, of {', '.join(SOURCES)}"},
    )
    gen_length: int | None = arg(
        None, "answer length in tokens (default: that of the longest completion)"
    )
    block_length: int | None = arg(None, "tokens decoded together (default: gen_length)")
    steps: int | None = arg(
        None, "denoising steps for the whole answer (default: half of gen_length)"
    )
    r_incorrect: float = arg(
        0.1,
        "peak rate (0-1) of incorrect tokens among visible ones, reached where half the answer is "
        "masked",
    )
    r_samples: float = arg(
        0.5, "the same rate for tokens that the model itself draws: most of its draws are clean"
    )
    noise_draws: int = arg(4, "noisy copies of every problem, for each kind of noise")
    num_trajectories: int = arg(
        5, "right answers shown step by step in which a token was corrected"
    )
    batch_size: int = arg(50, "rows of a forward")
    device: str = arg("auto", "auto (a GPU if there is one), cpu, cuda or cuda:N")
    dtype: str = arg("auto", "auto (bfloat16 on a GPU, else float32), float32, bfloat16 or float16")
    seed: int = arg(0, "of the noise")
    html: bool = arg(False, HELP)

    def __post_init__(self) -> None:
        for name in ("num", "noise_draws", "batch_size", "steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("r_incorrect", "r_samples"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")
        if unknown := [source for source in self.sources if source not in SOURCES]:
            raise ValueError(
                f"sources must be among {', '.join(SOURCES)}, got {', '.join(unknown)}"
            )


class TokenProblem(NamedTuple):
    """A prompt with one right answer, as text and as tokens."""

    prompt: str
    completion: str
    prompt_ids: list[int]
    answer_ids: list[int]


def load_problems(options: ReportOptions, engine: Engine) -> list[TokenProblem]:
    """The file's problems, or the sudoku's, as the engine's tokens."""
    pairs = (
        read_pairs(Path(options.data))[: options.num]
        if options.data
        else sudoku.problems("test", options.num)
    )
    end: list[int] = []
    if options.data and options.append_eos:
        end = [_eos(engine)]
    problems = []
    for prompt, completion in pairs:
        prompt_ids, answer_ids = engine.encode_pair(prompt, completion)
        problems.append(TokenProblem(prompt, completion, prompt_ids, answer_ids + end))
    longest = max(len(problem.prompt_ids) + len(problem.answer_ids) for problem in problems)
    if longest > engine.max_length:
        raise ValueError(
            f"a problem of {longest} tokens exceeds the model's context of {engine.max_length}: "
            "leave it out of --data"
        )
    return problems


def batches(problems: Sequence[TokenProblem], size: int) -> Iterator[Sequence[TokenProblem]]:
    for first in range(0, len(problems), size):
        yield problems[first : first + size]


def _eos(engine: Engine) -> int:
    """The id that ends completions."""
    if engine.special.eos is None:
        raise ValueError(
            "--append_eos needs an EOS token: this checkpoint's config.json states no "
            "eos_token_id; pass --append_eos false"
        )
    return engine.special.eos
