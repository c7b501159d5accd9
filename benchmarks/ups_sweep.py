"""Training options of the policy head against its AUC and the accuracy of remasking.

Sweeps change one option at a time.

    python -m benchmarks.ups_sweep --output outputs/ups_sweep
        r_incorrect and ups_width; 6 short runs
    python -m benchmarks.ups_sweep --sweep lambda_ups max_steps --output DIR
        the long ones

Every run is `training.remask_sft --preset sudoku4_ups` with one option changed, the
same seed, data and updates. lambda_ups only scales the loss of a frozen backbone, which
Adam undoes, so its runs train the backbone too (--joint, about four times as long) and
each is judged with its own backbone, `plain` included. The AUC is measured under the
run's own noise: rows of another r have other incorrect tokens. Sequence length, which
the plan names as well, has no meaning for answers of 16 tokens. The head of a run stays
in its folder under --output, beside ups_sweep.json and tables.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from llada_plugins.files.atomic import check_empty, whole_folder
from llada_plugins.options.command_line import run_command
from llada_plugins.options.fields import arg
from llada_plugins.reports.render import markdown
from llada_plugins.reports.ups import compared
from llada_plugins.tasks import sudoku
from training import remask_sft
from training.loop.metrics_log import read_metrics

from .ablation import GEN_LENGTH, load, measure
from .command import check_counts
from .paired import Interval, paired_interval

SWEEPS: dict[str, tuple[float, ...]] = {
    "r_incorrect": (0.05, 0.1, 0.2),
    "ups_width": (0, 128, 512),
    "lambda_ups": (0.5, 1.0, 2.0),
    "max_steps": (125, 250, 500, 1000),
}
JUDGED = ("plain", "tps_prob", "ups")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which options are swept, and how long each run is."""

    output: str = arg("outputs/ups_sweep", "folder for heads and results; must be empty or absent")
    sweep: list[str] = dataclasses.field(
        default_factory=lambda: ["r_incorrect", "ups_width"],
        metadata={"help": f"options to sweep, of {', '.join(SWEEPS)}"},
    )
    max_steps: int = arg(
        100, "updates of every run but those of the sweep max_steps; the shipped head had 500"
    )
    num: int = arg(500, "test problems")
    steps: int = arg(8, "denoising steps")
    threads: int = arg(1, "CPU threads")
    seed: int = arg(0, "of every training run and of the bootstrap")

    def __post_init__(self) -> None:
        check_counts(self, "max_steps", "num", "threads")
        if unknown := [name for name in self.sweep if name not in SWEEPS]:
            raise ValueError(f"sweep must be among {', '.join(SWEEPS)}, got {', '.join(unknown)}")
        compared("ups", gen_length=GEN_LENGTH, steps=self.steps)


def flags(option: str, value: float, folder: Path, options: Options) -> list[str]:
    """The training command's arguments for one run."""
    given = {
        "max_steps": options.max_steps,
        "warmup_steps": 20,
        "seed": options.seed,
        option: value,
    }
    arguments = [text for name, each in given.items() for text in (f"--{name}", str(each))]
    joint = ["--joint"] * (option == "lambda_ups")
    return [
        "--preset",
        "sudoku4_ups",
        "--output_dir",
        str(folder),
        "--num_threads",
        str(options.threads),
        *arguments,
        *joint,
    ]


def train(option: str, value: float, folder: Path, options: Options) -> dict[str, float]:
    """One run; returns the metrics of its last evaluation.

    The trainer's own printing goes to stderr.
    """
    with contextlib.redirect_stdout(sys.stderr):
        remask_sft.main(flags(option, value, folder, options))
    return next(row for row in reversed(read_metrics(folder)) if "eval_ups_auc" in row)


def judge(option: str, folder: Path, options: Options) -> dict[str, Any]:
    """Accuracy of plain decoding and of two sources in RemeDi's sampler, with paired intervals.

    The sources are the token's probability and the head.
    """
    # a joint run leaves a whole checkpoint
    pretrained = str(folder) if option == "lambda_ups" else None
    engine = load(pretrained, str(folder))
    settings = {
        source: compared(source, gen_length=GEN_LENGTH, steps=options.steps) for source in JUDGED
    }
    outcomes = measure(engine, sudoku.problems("test", options.num), settings)
    differences = {
        f"ups_less_{source}": paired_interval(
            outcomes["ups"].correct, outcomes[source].correct, seed=options.seed
        )._asdict()
        for source in JUDGED
        if source != "ups"
    }
    return {**{source: float(outcomes[source].correct.mean()) for source in JUDGED}, **differences}


def run(options: Options, folder: Path) -> dict[str, Any]:
    """Every run of every sweep, each in a folder of its own under `folder`."""
    rows = []
    for option in options.sweep:
        for value in SWEEPS[option]:
            place = folder / f"{option}={value}"
            metrics = train(option, value, place, options)
            rows.append(
                {
                    "option": option,
                    "value": value,
                    "joint": option == "lambda_ups",
                    "ups_auc": metrics["eval_ups_auc"],
                    "tps_prob_auc": metrics["eval_tps_prob_auc"],
                    **judge(option, place, options),
                }
            )
    return {"rows": rows, "torch": torch.__version__, "options": asdict(options)}


def tables(result: Mapping[str, Any]) -> str:
    """The runs as Markdown."""
    options = result["options"]
    rows = [
        [
            f"{row['option']} {row['value']}{', joint' * row['joint']}",
            f"{row['ups_auc']:.3f} / {row['tps_prob_auc']:.3f}",
            *(f"{row[source]:.3f}" for source in JUDGED),
            *(Interval(**row[f"ups_less_{source}"]) for source in ("plain", "tps_prob")),
        ]
        for row in result["rows"]
    ]
    title = (
        f"{options['num']} problems, {options['steps']} steps, {options['max_steps']} updates; "
        "[] are paired 95 % intervals"
    )
    return "\n\n".join(
        [
            title,
            markdown(
                ["run", "AUC ups / tps_prob", *JUDGED, "ups less plain", "ups less tps_prob"], rows
            ),
        ]
    )


def work(options: Options) -> str:
    """Run, write the output folder, return the tables."""
    torch.set_num_threads(options.threads)
    check_empty(Path(options.output))
    with whole_folder(Path(options.output)) as folder:
        result = run(options, folder)
        (folder / "ups_sweep.json").write_text(
            json.dumps(result, indent=1) + "\n", encoding="utf-8"
        )
        (folder / "tables.md").write_text(tables(result) + "\n", encoding="utf-8")
    return tables(result)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(Options, "python -m benchmarks.ups_sweep", work, argv)


if __name__ == "__main__":
    sys.exit(main())
