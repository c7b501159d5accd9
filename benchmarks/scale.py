"""What an evaluation costs: hours of GPUs from measured steps, for tasks of any size.

    python -m benchmarks.scale [--gpus 1 8 64] [--machine FILE] [--tasks FILE] [--page PAGE]

A forward takes its floor (see roofline.py) times what a measured step took over its floor.
h100.json holds the measurements as `python -m benchmarks.gpu --json FILE` writes them, so a
newer file takes its place, and `--page docs/scale.md` writes the page's table again.
table1.json holds what no source of the presets says: tokens of a prompt, choices of a
question, tokens of a choice.

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
MOST_COLUMNS = 10_240  # of an exact forward, of all rows: 8 of 1280, as was measured
FAST_ROWS, BLOCK = 32, 32  # of the fast way
# What benchmarks.gpu does not measure. The first is an assumption: it depends on model, task and
# threshold. The second is the published estimator's rows over ours at equal error, on an H100.
TOKENS_A_FORWARD = 3.0
LIKELIHOOD_GAIN = 2.3
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
    over_floor: Mapping[Form, Mapping[int, float]]  # of a form's step, by the columns of all rows

    @classmethod
    def read(cls, path: Path) -> Machine:
        """The GPU of a file that `python -m benchmarks.gpu --json FILE` wrote.

        Of each step the faster of eager and compiled layers counts.
        """
        raw = json.loads(path.read_text(encoding="utf-8"))
        options = raw["options"]
        of_row: dict[Form, int] = {  # columns
            "exact": options["prompt_length"] + options["gen_length"],
            "dual_later": options["block_length"],
        }
        sections = [raw["sections"].get(name, {}) for name in ("steps", "compiled")]
        over = {form: _over_floor(sections, form, columns) for form, columns in of_row.items()}
        return cls(raw["machine"]["device"], Ceiling(**raw["ceiling"]), over)

    def seconds(self, form: Form, work: Work, rows: int) -> float:
        """One forward of so many rows, each with this work."""
        measured = sorted(self.over_floor[form].items())
        columns, ratios = zip(*measured)
        ratio = np.interp(rows * work.columns, columns, ratios)
        return float(ratio) * floor_seconds(LLADA_8B, [work] * rows, ITEMSIZE, self.ceiling)


def _over_floor(sections: Sequence[Mapping[str, Any]], form: str, columns: int) -> dict[int, float]:
    """Of the form's steps, whose names end with their rows."""
    found: dict[int, float] = {}
    for section in sections:
        for name, step in section.items():
            if name.startswith(f"{form} "):
                total = columns * int(name.rpartition(" ")[2])
                ratio = step["seconds"] / step["floor"]
                found[total] = min(found.get(total, ratio), ratio)
    return found


def answer_seconds(machine: Machine, way: Way, prompt: int, gen_length: int, steps: int) -> float:
    """GPU seconds of one answer in a full batch.

    exact: `steps` forwards of everything. fast: `cache=dual` in blocks of 32, whose first
    step is a forward of everything, and an adaptive rule.
    """
    length = prompt + gen_length
    if way == "exact":
        rows = max(1, MOST_COLUMNS // length)
        step = Work(length, length * length, gen_length // 2)  # half are masked, on average
        return steps * machine.seconds("exact", step, rows) / rows
    rows, first = FAST_ROWS, Work(length, length * length, BLOCK)
    later = Work(BLOCK, BLOCK * length, BLOCK // 2, length - BLOCK)
    num_later = max(0.0, BLOCK / TOKENS_A_FORWARD - 1)
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
        samples = max(1.0, samples / LIKELIHOOD_GAIN)
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
