"""What an unmasking policy is worth: detection of incorrect tokens, and accuracy of decoding."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llada_plugins.engine.engine import Engine
from llada_plugins.files.atomic import check_empty, whole_folder
from llada_plugins.methods.table import check_policy
from llada_plugins.models import text
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.tasks import sudoku

from .render import markdown, pyplot
from .report_page import write_page
from .trajectory import (
    MASKED,
    Change,
    Decoded,
    corrections,
    expected_masks,
    record,
    removed,
    trajectory,
)
from .ups_detection import detect, detection_report, noises
from .ups_plots import draw
from .ups_problems import ReportOptions, TokenProblem, batches, load_problems


def samplers(options: ReportOptions, problems: Sequence[TokenProblem]) -> dict[str, SamplerConfig]:
    """The sampler of every source; all fields equal but those that make the source."""
    block = options.block_length or 1
    longest = max(len(problem.answer_ids) for problem in problems)
    gen_length = options.gen_length or math.ceil(longest / block) * block
    common = dict(
        gen_length=gen_length,
        block_length=options.block_length,
        steps=options.steps or max(1, gen_length // 2),
    )
    return {source: compared(source, **common) for source in options.sources}


def compared(source: str, **common: Any) -> SamplerConfig:
    """A source of SOURCES in RemeDi's sampler, or plain low-confidence decoding.

    common: the other options of SamplerConfig.
    """
    if source == "plain":
        return SamplerConfig(**common)
    return SamplerConfig(revise=True, confidence_source=source, **common)


def is_right(
    engine: Engine, options: ReportOptions, problem: TokenProblem, answer: Sequence[int]
) -> bool:
    """Any valid completion of a sudoku; of other data, the completion itself.

    White space around it does not count.
    """
    string = text.without_special_tokens(
        engine.tokenizer, text.decode(engine.tokenizer, answer, engine.special.ends)
    )
    if options.data:
        return string.strip() == problem.completion.strip()
    return sudoku.is_valid(problem.prompt, string)


def decoding_report(
    engine: Engine,
    problems: Sequence[TokenProblem],
    configs: Mapping[str, SamplerConfig],
    options: ReportOptions,
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """What each source did, and some of its trajectories.

    Sources take turns in every batch, so that all meet the same machine.
    """
    runs: dict[str, list[Decoded]] = {source: [] for source in configs}
    groups = list(batches(problems, options.batch_size))
    prompts = [[problem.prompt_ids for problem in group] for group in groups]
    record(engine, prompts[0], next(iter(configs.values())))  # a process's first run is its slowest
    for batch in prompts:
        for source, config in configs.items():
            runs[source].append(record(engine, batch, config))
    report: dict[str, Any] = {}
    shown: dict[str, list[str]] = {}
    for source, config in configs.items():
        right = [
            answer
            for group, run in zip(groups, runs[source])
            for answer in _right_answers(engine, options, group, run)
        ]
        report[source] = {
            "accuracy": len(right) / len(problems),
            "corrected_in_right_answers": sum(len(answer.changes) for answer in right),
            **_decoding_numbers(runs[source], config),
        }
        corrected = [answer for answer in right if answer.changes]
        shown[source] = [
            trajectory(engine, answer.problem.prompt, answer.history, answer.changes)
            for answer in corrected[: options.num_trajectories]
        ]
    return report, shown


class RightAnswer(NamedTuple):
    """An answer that is right, and how it came about."""

    problem: TokenProblem
    history: Tensor  # (S + 1, G), see Decoded
    changes: list[Change]


def _right_answers(
    engine: Engine, options: ReportOptions, group: Sequence[TokenProblem], run: Decoded
) -> list[RightAnswer]:
    """The right ones among the answers of a batch."""
    return [
        RightAnswer(problem, run.history[:, row], changes)
        for row, (problem, changes) in enumerate(zip(group, corrections(run.history)))
        if is_right(engine, options, problem, run.samples[row].answer)
    ]


def _decoding_numbers(runs: Sequence[Decoded], config: SamplerConfig) -> dict[str, Any]:
    masks = torch.cat([(run.history == MASKED).sum(-1) for run in runs], 1)  # (S + 1, all rows)
    forwards = [sample.num_forwards for run in runs for sample in run.samples]
    return {
        "masked_again": sum(int(removed(run.history).sum()) for run in runs),
        "mean_forwards": statistics.mean(forwards),
        "milliseconds_per_step_and_batch": 1000
        * statistics.median(run.seconds / (len(run.history) - 1) for run in runs),
        "mask_count": masks.double().mean(1).tolist(),
        "mask_count_never_rises": bool((masks[1:] <= masks[:-1]).all()),
        "mask_count_follows_schedule": bool(
            (masks == torch.tensor(expected_masks(config))[:, None]).all()
        ),
    }


def run(options: ReportOptions) -> dict[str, Any]:
    """Measure and write everything into options.output; returns the report."""
    pyplot()  # what is missing is said before the work
    check_empty(Path(options.output))
    engine = Engine(
        "llada_ups",
        pretrained=options.pretrained,
        ups=options.ups,
        device=options.device,
        dtype=options.dtype,
    )
    if engine.prepared.policy is None:
        raise ValueError(
            f"{engine.folder} has no policy head beside it: pass --ups FOLDER of one that "
            "training.remask_sft made"
        )
    if engine.model.config.attention == "block_causal":
        raise ValueError(
            f"{engine.folder} has block-causal attention, and this report puts its noise into "
            "whole answers: training.remask_sft --eval_data measures the same AUC block by block"
        )
    problems = load_problems(options, engine)
    configs = samplers(options, problems)
    for config in configs.values():
        check_policy(config, engine.prepared)
    detection = {
        kind: detection_report(detect(engine, problems, noise, options))
        for kind, noise in noises(engine, problems, options).items()
    }
    decoding, trajectories = decoding_report(engine, problems, configs, options)
    report = {
        "model": engine.info(),
        "num_problems": len(problems),
        "batch_size": options.batch_size,
        "device": str(engine.model.device),
        "detection": detection,
        "decoding": decoding,
        "options": dataclasses.asdict(options),
    }
    with whole_folder(Path(options.output)) as folder:
        (folder / "ups_report.json").write_text(
            json.dumps(report, indent=1) + "\n", encoding="utf-8"
        )
        shown = "\n\n".join(
            "\n\n".join([f"== {source}", *texts]) for source, texts in trajectories.items()
        )
        (folder / "trajectories.txt").write_text(shown + "\n", encoding="utf-8")
        draw(report, folder)
        if options.html:
            write_page(folder, "What the unmasking policy is worth", table(report), report)
    return report


def table(report: Mapping[str, Any]) -> str:
    """The report's main numbers as Markdown."""
    detection = [_detection_row(*each) for each in report["detection"].items()]
    decoding = [_decoding_row(*each) for each in report["decoding"].items()]
    return f"{markdown(DETECTION, detection)}\n\n{markdown(DECODING, decoding)}"


DETECTION = (
    "incorrect tokens",
    "visible",
    "incorrect",
    "AUC policy",
    "AUC tps_prob",
    "calibration error",
    "doubted: incorrect / clean",
)


def _detection_row(kind: str, found: Mapping[str, Any]) -> list[Any]:
    auc, doubted = found["auc"], found["confusion"]
    return [
        kind,
        found["num_visible"],
        found["num_incorrect"],
        f"{auc['policy']:.3f}",
        f"{auc['tps_prob']:.3f}",
        f"{found['calibration_error']['policy']:.3f}",
        f"{doubted['tn']} / {doubted['fn']}",
    ]


DECODING = (
    "source",
    "accuracy",
    "forwards",
    "ms a step and batch",
    "masked again",
    "corrected (right answers)",
    "mask count as scheduled",
)


def _decoding_row(source: str, found: Mapping[str, Any]) -> list[Any]:
    scheduled = found["mask_count_follows_schedule"] and found["mask_count_never_rises"]
    return [
        source,
        f"{found['accuracy']:.3f}",
        f"{found['mean_forwards']:.2f}",
        f"{found['milliseconds_per_step_and_batch']:.1f}",
        found["masked_again"],
        found["corrected_in_right_answers"],
        "yes" if scheduled else "NO",
    ]
