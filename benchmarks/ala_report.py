"""What an ALA router adds to a frozen backbone, beside its control.

The control is the same training without any prompt.

    python -m benchmarks.ala_report
        Nim, 3 seeds of 4 variants: 10 CPU-minutes
    python -m benchmarks.ala_report --task sudoku4 --variants router,bias

`benchmarks.ala_order` makes the same report of a task of its own.

Every variant is trained by `training.router_sft` from the task's preset, once per seed,
into --output_dir (a router that is there already, made by the same command, is taken as
it is). On problems that were not trained on, the same for all: the masked cross-entropy
(nats per masked token, mean over all numbers of masks, one fixed draw of positions for
each number), and the accuracy of greedy low-confidence decoding at each number of
steps. Differences are paired by problem and carry 95 % normal intervals over problems;
pooled over seeds, a problem counts once, with its mean over seeds. The static bias
learns a vector per answer position and never sees a prompt: only what a router gains
over *it* is owed to the prompt. Writes report.json and report.md into --output_dir.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llada_plugins.diffusion.denoiser import Canvas
from llada_plugins.engine.engine import Engine, Request
from llada_plugins.options.command_line import dataclass_parser
from llada_plugins.options.fields import arg
from llada_plugins.tasks import nim, sudoku
from training import router_sft
from training.loop.random_streams import random_stream

# with the presets' max_grad_norm of 1, warm-up of some seeds ends in seeds that the
# backbone cannot read (see training/runs/presets.py)
DEEP = ["--router_layers", "2", "--router_mlp", "256", "--router_scaled", "--learning_rate", "1e-3"]
VARIANTS = {  # flags of training.router_sft
    "router": [],
    "bias": ["--no_prompt"],
    "deep_router": DEEP,
    "deep_bias": [*DEEP, "--no_prompt"],
    "block_router": [*DEEP, "--router_blocks", "4"],
    "block_bias": [*DEEP, "--router_blocks", "4", "--no_prompt"],
}
CONTROL = {"router": "bias", "deep_router": "deep_bias", "block_router": "block_bias"}
BATCH = 250  # problems a forward


class RouterTask(NamedTuple):
    """A backbone and the problems on which it is measured."""

    name: str
    pretrained: str
    source: Sequence[str]  # flags of training.router_sft: backbone, data, recipe
    length: int  # of every answer, in tokens
    steps: tuple[int, ...]  # numbers of decoding steps
    problems: Callable[[Any, int], Sequence[tuple[str, str]]]  # split, number -> (prompt, answer)
    judge: Callable[[str, str], bool]
    splits: dict[str, float]  # the first is in distribution; share of --num


ROUTER_TASKS = {
    task.name: task
    for task in (
        RouterTask(
            "nim",
            "nim",
            ["--preset", "nim_router"],
            8,
            (4, 8),
            nim.problems,
            nim.is_winning,
            {"test": 1.0, "ood_heaps": 0.5, "ood_sizes": 0.5},
        ),
        # which cell can be filled first depends on the clues
        RouterTask(
            "sudoku4",
            "sudoku4",
            ["--preset", "sudoku4_router"],
            16,
            (8, 16),
            sudoku.problems,
            sudoku.is_valid,
            {"test": 1.0},
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is trained and measured."""

    variants: str = arg(",".join(VARIANTS), f"of {', '.join(VARIANTS)}")
    seeds: str = arg("0,1,2", "of training: weights, batches and noise")
    num: int = arg(
        1000, "problems in distribution; out of distribution, half as many of each split"
    )
    max_steps: int | None = arg(None, "updates (default: the preset's)")
    output_dir: str = arg("outputs/ala_report", "folder for the routers and the report")

    def __post_init__(self) -> None:
        if unknown := set(self.variants.split(",")) - set(VARIANTS):
            raise ValueError(
                f"--variants must be of {', '.join(VARIANTS)}, got {', '.join(sorted(unknown))}"
            )
        if not all(seed.isdecimal() for seed in self.seeds.split(",")):
            raise ValueError(
                f"--seeds must be whole numbers with commas between them, got {self.seeds!r}"
            )


@dataclass(frozen=True, kw_only=True)
class TaskOptions(Options):
    """The same of a task whose backbone the package has."""

    task: Literal["nim", "sudoku4"] = arg("nim", "the backbone and its problems")


class Measured(NamedTuple):
    """One model on the task."""

    cross_entropy: Tensor  # (N,) nats per masked token of each problem in distribution, float64
    correct: dict[str, Tensor]  # "split@steps" -> (problems,) 1 or 0, float64


def train(task: RouterTask, options: Options, variant: str, seed: int) -> Path:
    """The folder of a variant's router.

    Raises ValueError where it holds one made by another command.
    """
    folder = Path(options.output_dir) / task.name / f"{variant}-{seed}"
    command = [*task.source, "--output_dir", str(folder), "--seed", str(seed), *VARIANTS[variant]]
    command += [] if options.max_steps is None else ["--max_steps", str(options.max_steps)]
    config = folder / "router_config.json"
    if not config.is_file():
        router_sft.main(command)
    made_by = json.loads(config.read_text(encoding="utf-8"))["training"]["command"]
    if made_by != shlex.join(["python", "-m", "training.router_sft", *command]):
        raise ValueError(
            f"{folder} holds a router of another run ({made_by}): give another --output_dir"
        )
    return folder


def measure(task: RouterTask, num: int, router: Path | None) -> Measured:
    """The task's backbone, with a router before it if one is given."""
    options = {} if router is None else {"router": str(router)}
    method = "llada" if router is None else "llada_ala"
    engine = Engine(
        method, pretrained=task.pretrained, batch_size=BATCH, gen_length=task.length, **options
    )
    correct = {}
    for split, share in task.splits.items():
        problems = task.problems(split, round(share * num))
        for steps in task.steps:
            sampler = engine.sampler_for({"steps": steps})
            answers = dict(engine.generate([Request(prompt, sampler) for prompt, _ in problems]))
            correct[f"{split}@{steps}"] = torch.tensor(
                [
                    float(task.judge(prompt, answers[number].text))
                    for number, (prompt, _) in enumerate(problems)
                ],
                dtype=torch.float64,
            )
    return Measured(
        masked_cross_entropy(engine, task.problems(next(iter(task.splits)), num)), correct
    )


@torch.inference_mode()
def masked_cross_entropy(engine: Engine, problems: Sequence[tuple[str, str]]) -> Tensor:
    """Nats per masked token of each problem (N,), mean over 1 to L masks.

    It is LLaDA's SFT loss with the share of masks enumerated.

    The problems' prompts have one length, and so have their answers. Each number of
    masks has one fixed draw of positions.
    """
    rows = torch.tensor(
        [
            engine.tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
            for prompt, answer in problems
        ]
    )
    length = len(problems[0][1])
    start = rows.shape[1] - length
    total = torch.zeros(len(rows), dtype=torch.float64)
    for num_masked in range(1, length + 1):
        rank = (
            torch.rand(len(rows), length, generator=random_stream("report", num_masked))
            .argsort(-1)
            .argsort(-1)
        )
        masked = rank < num_masked  # (N, L)
        for first in range(0, len(rows), BATCH):
            clean, hidden = rows[first : first + BATCH], masked[first : first + BATCH]
            tokens = torch.cat(
                [clean[:, :start], clean[:, start:].masked_fill(hidden, engine.special.mask)], -1
            ).to(engine.model.device)
            prediction = engine.denoise(
                Canvas(tokens, tokens.new_full((len(tokens),), start), padded=False),
                slice(start, start + length),
            )
            positions = torch.arange(length, device=tokens.device).expand(len(tokens), -1)
            logits = prediction.logits_at(positions).float().cpu().transpose(1, 2)  # (B, V, L)
            cost = F.cross_entropy(logits, clean[:, start:], reduction="none")  # (B, L)
            total[first : first + BATCH] += (cost * hidden).sum(-1).double() / num_masked
    return total / length


def mean(values: Tensor) -> dict[str, float]:
    """The mean over problems and half the width of its 95 % normal interval."""
    return {
        "mean": float(values.mean()),
        "half_width": 1.96 * float(values.std()) / math.sqrt(len(values)),
    }


Metrics = dict[str, Tensor]  # name -> one value per problem


def metrics(measured: Measured) -> Metrics:
    """What is compared of a measurement."""
    return {"cross_entropy": measured.cross_entropy, **measured.correct}


def less(of: Sequence[Metrics], others: Sequence[Metrics]) -> dict[str, dict[str, Any]]:
    """Paired differences of every metric: a mean a seed, and one over seeds."""
    found = {}
    for metric in of[0]:
        differences = [each[metric] - other[metric] for each, other in zip(of, others, strict=True)]
        found[metric] = {
            "seeds": [mean(difference) for difference in differences],
            "pooled": mean(torch.stack(differences).mean(0)),
        }
    return found


def run(task: RouterTask, options: Options) -> dict[str, Any]:
    """Train, measure, compare; the result can be written as JSON."""
    seeds = [int(seed) for seed in options.seeds.split(",")]
    variants = [name for name in VARIANTS if name in options.variants.split(",")]
    plain = metrics(measure(task, options.num, None))
    runs: dict[str, list[Metrics]] = {"plain": [plain] * len(seeds)}
    for name in variants:
        routers = (train(task, options, name, seed) for seed in seeds)
        runs[name] = [metrics(measure(task, options.num, router)) for router in routers]
    pairs = [(name, "plain") for name in variants]
    pairs += [(name, CONTROL[name]) for name in variants if CONTROL.get(name) in variants]
    return {
        "plain": means(plain),
        "variants": {name: [means(each) for each in runs[name]] for name in variants},
        "differences": [
            {"of": name, "less": other, **less(runs[name], runs[other])} for name, other in pairs
        ],
        "problems": {metric: len(values) for metric, values in plain.items()},
        "seeds": seeds,
        "options": asdict(options),
    }


def means(measured: Metrics) -> dict[str, dict[str, float]]:
    """Metric name -> its mean over problems."""
    return {metric: mean(values) for metric, values in measured.items()}


def tables(result: dict[str, Any]) -> str:
    """Two Markdown tables: every model, and the differences."""
    columns = list(result["plain"])
    head = ["masked CE" if metric == "cross_entropy" else metric for metric in columns]
    rule = _row(*["---"] * (len(head) + 2))
    lines = [_row("model", "seed", *head), rule, _model_row("plain", "", result["plain"])]
    for name, runs in result["variants"].items():
        for seed, each in zip(result["seeds"], runs):
            lines.append(_model_row(name, str(seed), each))
    lines += ["", _row("difference", "seed", *head), rule]
    for each in result["differences"]:
        title = f"{each['of']} - {each['less']}"
        for number, seed in enumerate(result["seeds"]):
            cells = [each[metric]["seeds"][number] for metric in columns]
            lines.append(_difference_row(title, str(seed), cells))
        lines.append(_difference_row(title, "all", [each[metric]["pooled"] for metric in columns]))
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _model_row(name: str, seed: str, found: dict[str, dict[str, float]]) -> str:
    texts = [
        f"{cell['mean']:.4f}"
        if metric == "cross_entropy"
        else f"{cell['mean']:.3f} ±{cell['half_width']:.3f}"
        for metric, cell in found.items()
    ]
    return _row(name, seed, *texts)


def _difference_row(title: str, seed: str, cells: Sequence[dict[str, float]]) -> str:
    texts = (f"{cell['mean']:+.4f} ±{cell['half_width']:.4f}" for cell in cells)
    return _row(title, seed, *texts)


def command_line(
    kind: type[Options],
    program: str,
    task_of: Callable[[Any], RouterTask],
    argv: Sequence[str] | None,
) -> None:
    """Parse the options, run, write and print the report.

    A mistake ends the program with one line.
    """
    parser = dataclass_parser(kind, prog=f"python -m {program}")
    try:
        (options,) = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
        task = task_of(options)
        result = run(task, options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    folder = Path(options.output_dir) / task.name
    (folder / "report.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(tables(result) + "\n", encoding="utf-8")
    print(tables(result))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    command_line(
        TaskOptions, "benchmarks.ala_report", lambda options: ROUTER_TASKS[options.task], argv
    )


if __name__ == "__main__":
    main()
