"""Does a router help where the prompt decides in which order an answer can be filled?

The report of `ala_report` on chained sums.

    python -m benchmarks.ala_order
        one backbone (190 CPU-seconds), then 3 seeds of 6 variants of 30 each

The answer is a ring of 8 digits. The prompt says at which place its sum begins, in
which direction it runs, and what every place adds:

    prompt    "<301c2213="     from place 3 (a letter: it adds 2) to the left:
                               2, 2+1, 2+1+0, … modulo 4
    answer    what the sum is at each place

Each digit follows from its neighbour in one small step, and without it only from the
whole chain before it: a model is sure first of the place where the chain begins,
wherever that is, and then of the next. One answer is right. The backbone, of the
shipped models' shape, is trained here and frozen; no prompt that routers are measured
on is among those that it or they are trained on.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from llada_plugins.options.fields import arg
from training.loop import objectives
from training.runs import launch
from training.runs.command import Run
from training.runs.jobs import mask_id, preset_job
from training.runs.options import SFTOptions
from training.runs.presets import ROUTER_PRESETS, TINY_SHAPE, Preset, plan

from .ala_report import Options, RouterTask, command_line

LENGTH = 8
MODULUS = 4
TEST_SHARE = 16  # one prompt of so many is for tests, whichever split or seed draws it
STEP = {">": 1, "<": -1}
# of the routers: the presets', without evaluations and with half their batch; scaled as
# ala_report's DEEP
RECIPE = {
    **ROUTER_PRESETS["nim_router"].arguments,
    "router_scaled": True,
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 64,
    "eval_strategy": "no",
}


@dataclass(frozen=True, kw_only=True)
class OrderOptions(Options):
    """What is trained and measured."""

    backbone_steps: int = arg(4000, "updates of 64 for the backbone")
    output_dir: str = arg(
        "outputs/ala_order", "folder for the backbone, the routers and the report"
    )


class OrderProblem(NamedTuple):
    """A prompt and its only right answer."""

    prompt: str
    answer: str


def problems(split: str, num: int, seed: int = 0) -> list[OrderProblem]:
    """`num` problems drawn independently; split: "train" or "test", which share no prompt."""
    stream = random.Random(f"order {split} {seed}")
    drawn: list[OrderProblem] = []
    while len(drawn) < num:
        root = stream.randrange(LENGTH)
        places = [str(stream.randrange(MODULUS)) for _ in range(LENGTH)]
        places[root] = "abcd"[int(places[root])]
        prompt = f"{stream.choice('><')}{''.join(places)}="
        if (zlib.crc32(prompt.encode()) % TEST_SHARE == 0) == (split == "test"):
            drawn.append(OrderProblem(prompt, solve(prompt)))
    return drawn


def pairs(split: str, num: int, seed: int = 0) -> list[tuple[str, str]]:
    """The same problems, as a preset's data."""
    return [(prompt, answer) for prompt, answer in problems(split, num, seed)]


def solve(prompt: str) -> str:
    """The answer to a prompt."""
    root = next(place for place in range(LENGTH) if prompt[1 + place].isalpha())
    digits, total = [""] * LENGTH, 0
    for number in range(LENGTH):
        place = (root + number * STEP[prompt[0]]) % LENGTH
        total += int(prompt[1 + place], 16) % 10  # a letter from a to d is 10 to 13
        digits[place] = str(total % MODULUS)
    return "".join(digits)


def train_backbone(folder: Path, updates: int) -> None:
    """A model of the package's tiny shape in `folder`.

    One that is there already is taken if the same command made it.
    """
    command = ["python", "-m", "benchmarks.ala_order", "--backbone_steps", str(updates)]
    if (folder / "config.json").is_file():
        made_by = json.loads((folder / "config.json").read_text(encoding="utf-8"))["training"][
            "command"
        ]
        if made_by != " ".join(command):
            raise ValueError(
                f"{folder} holds a backbone of another run ({made_by}): give another --output_dir"
            )
        return
    preset = Preset(
        model=TINY_SHAPE,
        pairs=lambda: (pairs("train", 64 * updates), pairs("test", 1000, seed=1)),
        append_eos=False,
        arguments=plan(
            steps=updates,
            rate=2e-3,
            warmup=min(100, updates),
            every=500,
            bf16=True,
            logging_steps=100,
        ),
    )
    presets = {"order": preset}
    _, arguments = launch.parse(
        SFTOptions, "", ["--preset", "order", "--output_dir", str(folder)], presets
    )
    job = preset_job("order", arguments, presets)
    objective = objectives.sft(mask_id(job.model.config))
    launch.run(Run(job=job, objective=objective), arguments, command)


def prepare(options: OrderOptions) -> RouterTask:
    """The task, its backbone and the routers' problems on disk."""
    folder = Path(options.output_dir)
    train_backbone(folder / "backbone", options.backbone_steps)
    data = folder / "data.jsonl"
    rows = [
        json.dumps({"prompt": prompt, "completion": answer})
        for prompt, answer in problems("train", 9_600, seed=1)
    ]
    data.write_text("\n".join(rows) + "\n", encoding="utf-8")
    source = [
        "--model",
        str(folder / "backbone"),
        "--data",
        str(data),
        "--append_eos",
        "False",
        *(f"--{name}={value}" for name, value in RECIPE.items() if name != "seed"),
    ]
    return RouterTask(
        "order",
        str(folder / "backbone"),
        source,
        LENGTH,
        (2, 4, 8),
        problems,
        lambda prompt, answer: answer == solve(prompt),
        {"test": 1.0},
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    command_line(OrderOptions, "benchmarks.ala_order", prepare, argv)


if __name__ == "__main__":
    main()
