"""What an evaluation costs: hours of GPUs from measured steps, for tasks of any size.

    python -m benchmarks.scale [--gpus 1 8 64] [--machine FILE] [--tasks FILE] [--page PAGE]

A forward takes its floor (see roofline.py) times what a measured step took over its floor.
h100.json holds the measurements: a newer one is a new file, or another number there, and
`--page docs/scale.md` writes the page's table again. table1.json holds what no source of
the presets says: tokens of a prompt, choices of a question, tokens of a choice.

Loading, few questions' last batches in which rows are missing, and grading are left out.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from llada_plugins.settings.table import Preset, find

from .random_models import model_config
from .roofline import Ceiling, Work, floor_seconds

HERE = Path(__file__).parent
BEGIN, END = "<!-- scale: written by python -m benchmarks.scale -->", "<!-- end of scale -->"
LLADA_8B = model_config("8b", 4096)
ITEMSIZE = 2  # bytes of a weight in bfloat16
MOST_COLUMNS = 10_240  # of one forward of a likelihood: 8 rows of 1280, as was measured
ROWS = {"exact": 8, "fast": 32}  # answers decoded together
BLOCK = 32  # of the fast way
Way = Literal["exact", "fast"]
Form = Literal["exact", "dual_later"]


class Shape(NamedTuple):
    """How long a task's requests are, in tokens; what no preset says."""

    prompt: int
    choices: int = 0  # of a question that is answered by likelihood
    answer: int = 0  # tokens of a choice


@dataclass(frozen=True)
class Machine:
    """A measured GPU."""

    name: str
    ceiling: Ceiling
    over_floor: Mapping[Form, Mapping[int, float]]  # of a form's step, by rows
    likelihood_gain: float  # rows of the published estimator over ours at equal error
    tokens_a_forward: float  # of the fast way; depends on model and task

    @classmethod
    def read(cls, path: Path) -> Machine:
        """The measurements of a file like h100.json."""
        raw = json.loads(path.read_text(encoding="utf-8"))
        over = {
            form: {int(rows): ratio for rows, ratio in ratios.items()}
            for form, ratios in raw["over_floor"].items()
        }
        ceiling = Ceiling(raw["flops"], raw["bandwidth"])
        return cls(raw["name"], ceiling, over, raw["likelihood_gain"], raw["tokens_a_forward"])

    def seconds(self, form: Form, work: Work, rows: int) -> float:
        """One forward of so many rows, each with this work."""
        measured = sorted(self.over_floor[form].items())
        numbers, ratios = zip(*measured)
        ratio = np.interp(rows, numbers, ratios)
        return float(ratio) * floor_seconds(LLADA_8B, [work] * rows, ITEMSIZE, self.ceiling)


def answer_seconds(machine: Machine, way: Way, prompt: int, gen_length: int, steps: int) -> float:
    """GPU seconds of one answer in a full batch.

    exact: `steps` forwards of everything. fast: `cache=dual` in blocks of 32, whose first
    step is a forward of everything, and an adaptive rule.
    """
    rows, length = ROWS[way], prompt + gen_length
    if way == "exact":
        step = Work(length, length * length, gen_length // 2)  # half are masked, on average
        return steps * machine.seconds("exact", step, rows) / rows
    first = Work(length, length * length, BLOCK)
    later = Work(BLOCK, BLOCK * length, BLOCK // 2, length - BLOCK)
    num_later = max(0.0, BLOCK / machine.tokens_a_forward - 1)
    block = machine.seconds("exact", first, rows)
    block += num_later * machine.seconds("dual_later", later, rows)
    return math.ceil(gen_length / BLOCK) * block / rows


def question_seconds(machine: Machine, way: Way, shape: Shape, options: Mapping[str, Any]) -> float:
    """GPU seconds of one question that is answered by the likelihoods of its choices.

    mc_num rows a choice, twice as many with guidance; the fast way needs fewer for the
    same error, but never less than one.
    """
    samples: float = options["mc_num"]
    if way == "fast":
        samples = max(1.0, samples / machine.likelihood_gain)
    if options.get("cfg_scale"):
        samples *= 2
    length = shape.prompt + shape.answer
    rows = max(1, MOST_COLUMNS // length)
    work = Work(length, length * length, math.ceil(shape.answer / 2))
    return shape.choices * samples * machine.seconds("exact", work, rows) / rows


def hours(machine: Machine, way: Way, preset: Preset, shape: Shape, gpus: int) -> float:
    """Hours until the GPU with the most questions has answered them."""
    assert preset.task.questions is not None
    each = (
        question_seconds(machine, way, shape, preset.options)
        if shape.choices
        else answer_seconds(
            machine, way, shape.prompt, preset.options["gen_length"], preset.options["steps"]
        )
    )
    return math.ceil(preset.task.questions / gpus) * each / 3600


def table(machine: Machine, shapes: Mapping[str, Shape], gpus: Sequence[int]) -> str:
    """Markdown: a row for each preset, and one of their sums."""
    ways: tuple[Way, ...] = ("exact", "fast")
    columns = [(way, number) for way in ways for number in gpus]
    heads = " | ".join(f"{way}, {number}" for way, number in columns)
    lines = [
        f"| preset | questions | prompt + answer | {heads} |",
        "|---" * (3 + len(columns)) + "|",
    ]
    sums = [0.0] * len(columns)
    for name, shape in shapes.items():
        preset = find(name)
        found = [hours(machine, way, preset, shape, number) for way, number in columns]
        sums = [one + other for one, other in zip(sums, found)]
        length = f"{shape.prompt} + {shape.choices} × {shape.answer}"
        if not shape.choices:
            length = f"{shape.prompt} + {preset.options['gen_length']}"
        cells = " | ".join(map(_hours, found))
        lines.append(f"| `{name}` | {preset.task.questions} | {length} | {cells} |")
    lines.append(f"| all | | | {' | '.join(map(_hours, sums))} |")
    return "\n".join(lines)


def _hours(value: float) -> str:
    """To two digits; minutes below an hour."""
    if value < 1:
        return f"{max(1, round(60 * value))} min"
    return f"{value:.1f} h" if value < 10 else f"{value:,.0f} h"


def read_shapes(path: Path) -> dict[str, Shape]:
    """The shapes of a file like table1.json, by preset."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    return {name: Shape(**shape) for name, shape in raw.items()}


def write(page: Path, text: str) -> None:
    """Put the table between the marks of a page."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{text}\n\n{END}{after}", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, or write it into a page; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64], help="how many")
    parser.add_argument("--machine", type=Path, default=HERE / "h100.json", help="measured GPU")
    parser.add_argument("--tasks", type=Path, default=HERE / "table1.json", help="tasks' shapes")
    parser.add_argument("--page", type=Path, help="write the table into this page")
    given = parser.parse_args(arguments)
    found = table(Machine.read(given.machine), read_shapes(given.tasks), given.gpus)
    if given.page is None:
        print(found)
    else:
        write(given.page, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
