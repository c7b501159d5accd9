"""Which confidence source, and how many tokens a step?

Accuracy on the tiny model, everything else fixed.

    make ablation
        both tables at their defaults; 1000 problems, one CPU thread
    python -m benchmarks.ablation --num 300 --steps 8 --output DIR
        a quick look

1. Steps x source, greedy, one block. `plain` is LLaDA's low-confidence decoding, which
   never masks a token again; all others rank in RemeDi's sampler with the same K_n:
   after step n the K_n best tokens stand, visible ones competing. Beside each accuracy,
   the paired 95 % bootstrap interval of `ups` less that source, on the same problems.
   (Where steps does not divide the 16 tokens, plain has LLaDA's schedule, which takes
   the remainder first, and the others RemeDi's, which takes it last.)
2. Accuracy per forward: fixed K_n beside threshold and factor decoding, without
   revision and with it (tokens with sigmoid(h) below revise_below are masked again). A
   row of problems is at the cap when its last forward had to keep every token.

The same through the stock harnesses, answer by answer (but under `random`, where they
give a repeated puzzle other random numbers):
    for source in tps_prob ups ups_all random entropy margin; do
      lm_eval --model llada_ups --model_args confidence_source=$source,steps=8 \\
              --tasks sudoku4 --include_path configs/lmeval \\
              --metadata '{"num": 1000}' --batch_size 50
    done
    lm_eval --model llada_ups --model_args threshold=0.95,revise_below=0.5 \\
            --tasks sudoku4 --include_path configs/lmeval
    opencompass configs/eval_llada_ups_ablation.py
`plain` is the first of these with --model llada --model_args steps=8.
Writes ablation.json, tables.md and frontier.png into --output, all or nothing.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from llada_plugins.diffusion.denoiser import Canvas, Denoiser, Prediction
from llada_plugins.engine.engine import Engine
from llada_plugins.files.atomic import check_empty, whole_folder
from llada_plugins.methods.table import check_policy
from llada_plugins.options.command_line import run_command
from llada_plugins.options.fields import arg
from llada_plugins.reports.render import pyplot
from llada_plugins.reports.report_page import HELP, write_page
from llada_plugins.reports.ups import compared
from llada_plugins.reports.ups_problems import SOURCES
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.generate import generate
from llada_plugins.tasks import sudoku

from .ablation_tables import draw, tables
from .command import check_counts
from .paired import Outcome, paired_interval

GEN_LENGTH = 16
THRESHOLDS = (0.8, 0.85, 0.9, 0.95, 0.99)
FACTORS = (1.2, 0.8, 0.1)
# the targets, at 8 steps
DIFFERENCES = (("ups", "plain", 0.05), ("ups", "tps_prob", 0.02), ("tps_prob", "random", 0.10))


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is compared, on how many problems."""

    pretrained: str | None = arg(
        None,
        "checkpoint folder that answers 4x4 sudoku (default: the tiny model shipped in the "
        "package)",
    )
    ups: str | None = arg(
        None, "folder of the policy head (default: 'ups' in the checkpoint's folder)"
    )
    output: str = arg("outputs/ablation", "folder for the results; must be empty or absent")
    num: int = arg(1000, "test problems")
    steps: list[int] = dataclasses.field(
        default_factory=lambda: [4, 8, 16],
        metadata={"help": "denoising steps of the first table, each 1 to 16"},
    )
    revise_below: float = arg(
        0.5, "the second table's revision: visible tokens scored below this (0-1) are masked again"
    )
    max_forwards: int = arg(
        16, "the second table's cap on forward passes; the last one keeps every token"
    )
    num_draws: int = arg(2000, "bootstrap draws")
    batch_size: int = arg(50, "problems decoded together; does not change any answer")
    threads: int = arg(1, "CPU threads; one is fastest for a model this small")
    seed: int = arg(0, "of the bootstrap and of the random source")
    html: bool = arg(False, HELP)

    def __post_init__(self) -> None:
        check_counts(self, "num", "num_draws", "batch_size", "threads")
        self.settings()

    def settings(self) -> dict[str, SamplerConfig]:
        """Every sampler, by the name of its row.

        Raises ValueError on a value that SamplerConfig refuses.
        """
        common = dict(gen_length=GEN_LENGTH, seed=self.seed)
        found = {
            cell(source, steps): compared(source, steps=steps, **common)
            for steps in self.steps
            for source in SOURCES
        }
        for rule in [dict(threshold=value) for value in THRESHOLDS] + [
            dict(factor=value) for value in FACTORS
        ]:
            ((name, value),) = rule.items()
            adaptive: dict[str, Any] = dict(max_forwards=self.max_forwards, **rule, **common)
            found[f"{name} {value}"] = SamplerConfig(**adaptive)
            found[f"{name} {value} revised"] = SamplerConfig(
                confidence_source="ups", revise_below=self.revise_below, **adaptive
            )
        return found


def cell(source: str, steps: int) -> str:
    """The name of a cell of the first table."""
    return f"{source}, {steps} steps"


def remembered(denoise: Denoiser) -> Denoiser:
    """The same predictions, but every canvas row is evaluated once.

    Sources and rules share what they agree on.
    """
    known: dict[tuple[int, bytes], tuple[torch.Tensor, torch.Tensor | None]] = {}

    def denoise_remembered(canvas: Canvas, window: slice) -> Prediction:
        keys = [(window.start, row.tobytes()) for row in canvas.tokens.cpu().numpy()]
        fresh = {key: row for row, key in enumerate(keys) if key not in known}
        if fresh:
            rows = torch.tensor(list(fresh.values()), device=canvas.tokens.device)
            prediction = denoise(
                Canvas(canvas.tokens[rows], canvas.answer_start[rows], canvas.padded), window
            )
            every = torch.arange(window.stop - window.start, device=rows.device).expand(
                len(rows), -1
            )
            policy = [None] * len(rows) if prediction.confidence is None else prediction.confidence
            known.update(zip(fresh, zip(prediction.logits_at(every), policy)))
        logits, confidence = zip(*(known[key] for key in keys))
        stacked = torch.stack(logits)  # (B, W, V)
        return Prediction.from_logits(
            stacked, None if confidence[0] is None else torch.stack(confidence)
        )

    return denoise_remembered


def load(pretrained: str | None, ups: str | None) -> Engine:
    """The model with its policy head, on the CPU; raises ValueError where there is none."""
    engine = Engine("llada_ups", pretrained=pretrained, ups=ups, device="cpu")
    if engine.prepared.policy is None:
        raise ValueError(
            f"{engine.folder} has no policy head beside it: pass --ups FOLDER of one that "
            "training.remask_sft made"
        )
    return engine


def measure(
    engine: Engine,
    problems: Sequence[sudoku.SudokuProblem],
    settings: Mapping[str, SamplerConfig],
    batch_size: int = 50,
) -> dict[str, Outcome]:
    """Decode every problem under every setting, batch by batch."""
    for config in settings.values():
        check_policy(config, engine.prepared)
    correct: dict[str, list[bool]] = {name: [] for name in settings}
    forwards: dict[str, list[int]] = {name: [] for name in settings}
    for first in range(0, len(problems), batch_size):
        batch = problems[first : first + batch_size]
        prompts = [engine.encode(problem.puzzle) for problem in batch]
        denoise = remembered(engine.denoise)  # anew for each batch: 17 kB a row
        for name, config in settings.items():
            samples = generate(
                engine.model, prompts, config, special=engine.special, denoise=denoise
            )
            answers = engine.tokenizer.batch_decode([sample.answer for sample in samples])
            correct[name] += [
                sudoku.is_valid(problem.puzzle, answer) for problem, answer in zip(batch, answers)
            ]
            forwards[name] += [sample.num_forwards for sample in samples]
    return {
        name: Outcome(numpy.array(correct[name]), numpy.array(forwards[name])) for name in settings
    }


def describe(outcome: Outcome, options: Options) -> dict[str, Any]:
    """An outcome's numbers; half: of the accuracy's 95 % interval."""
    accuracy = float(outcome.correct.mean())
    return {
        "accuracy": accuracy,
        "half": 1.96 * (accuracy * (1 - accuracy) / len(outcome.correct)) ** 0.5,
        "mean_forwards": float(outcome.forwards.mean()),
        "at_cap": float((outcome.forwards == options.max_forwards).mean()),
    }


def compare(first: Outcome, second: Outcome, options: Options) -> dict[str, float]:
    """The paired interval of first less second, for JSON."""
    return paired_interval(first.correct, second.correct, options.num_draws, options.seed)._asdict()


def source_rows(outcomes: Mapping[str, Outcome], options: Options) -> list[dict[str, Any]]:
    """The first table: one row a cell."""
    return [
        {
            "steps": steps,
            "source": source,
            **describe(outcomes[cell(source, steps)], options),
            "ups_less_this": compare(
                outcomes[cell("ups", steps)], outcomes[cell(source, steps)], options
            ),
        }
        for steps in options.steps
        for source in SOURCES
    ]


def frontier_rows(outcomes: Mapping[str, Outcome], options: Options) -> list[dict[str, Any]]:
    """The second table, by mean forwards.

    on_frontier: no other row is as accurate with fewer forwards, or better with as
    many.
    """
    rows = []
    for name, config in options.settings().items():
        row = {
            "name": name,
            "cap": config.max_forwards,
            "revise_below": config.revise_below,
            **describe(outcomes[name], options),
        }
        if config.revise_below is not None:
            row["less_unrevised"] = compare(
                outcomes[name], outcomes[name.removesuffix(" revised")], options
            )
        rows.append(row)
    for row in rows:
        row["on_frontier"] = not any(
            other["mean_forwards"] <= row["mean_forwards"]
            and other["accuracy"] >= row["accuracy"]
            and (other["mean_forwards"], other["accuracy"])
            != (row["mean_forwards"], row["accuracy"])
            for other in rows
        )
    return sorted(rows, key=lambda row: row["mean_forwards"])


def verdicts(
    outcomes: Mapping[str, Outcome], frontier: Sequence[Mapping[str, Any]], options: Options
) -> list[dict[str, Any]]:
    """What the project set out to reach, and whether it did.

    Three differences at 8 steps, and an accuracy at a number of forwards.
    """
    found = []
    for first, second, target in DIFFERENCES if 8 in options.steps else ():
        interval = compare(outcomes[cell(first, 8)], outcomes[cell(second, 8)], options)
        found.append(
            {
                "target": f"{first} less {second} at 8 steps >= {target:+.2f}",
                "value": interval["difference"],
                "interval": interval,
                "met": interval["difference"] >= target,
            }
        )
    cheap = [
        row for row in frontier if row["revise_below"] is not None and row["mean_forwards"] <= 6
    ]
    best = max(cheap, key=lambda row: row["accuracy"], default=None)
    found.append(
        {
            "target": "adaptive with revision >= .95 at <= 6 mean forwards",
            "value": best and best["accuracy"],
            "row": best and f"{best['name']} at {best['mean_forwards']:.2f}",
            "met": best is not None and best["accuracy"] >= 0.95,
        }
    )
    return found


def run(options: Options) -> dict[str, Any]:
    """Measure both tables; the result can be written as JSON."""
    engine = load(options.pretrained, options.ups)
    began = time.process_time()
    outcomes = measure(
        engine, sudoku.problems("test", options.num), options.settings(), options.batch_size
    )
    frontier = frontier_rows(outcomes, options)
    return {
        "sources": source_rows(outcomes, options),
        "frontier": frontier,
        "targets": verdicts(outcomes, frontier, options),
        "model": engine.info(),
        "torch": torch.__version__,
        "cpu_seconds": time.process_time() - began,
        "options": asdict(options),
    }


def work(options: Options) -> str:
    """Run, write the output folder, return the tables."""
    torch.set_num_threads(options.threads)
    pyplot()  # what is missing is said before the work
    check_empty(Path(options.output))
    result = run(options)
    with whole_folder(Path(options.output)) as folder:
        (folder / "ablation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (folder / "tables.md").write_text(tables(result) + "\n", encoding="utf-8")
        draw(result, folder / "frontier.png")
        if options.html:
            write_page(folder, "Confidence sources and adaptive rules", tables(result), result)
    return tables(result)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(Options, "python -m benchmarks.ablation", work, argv)


if __name__ == "__main__":
    sys.exit(main())
