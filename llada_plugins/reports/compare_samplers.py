"""Two samplers side by side on the same prompts."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llada_plugins.engine.engine import Engine
from llada_plugins.engine.request import Completion, Request
from llada_plugins.files.atomic import check_empty, whole_folder
from llada_plugins.files.jsonl import PROMPTS, read_prompts
from llada_plugins.methods.table import METHODS
from llada_plugins.models.folder import SHIPPED, resolve
from llada_plugins.options.fields import arg, coerce
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.tasks.registry import TASKS

from .attention import AttentionStatistics, summarise
from .render import SIZE, markdown, pyplot, save
from .report_page import HELP, write_page


@dataclass(frozen=True, kw_only=True)
class AnalyzeConfig:
    """What is compared on which prompts."""

    output: str = arg(help="folder for the report; must be empty or absent")
    model: Literal[tuple(METHODS)] = arg(  # type: ignore[valid-type]  # names of a table
        "llada", f"one of {', '.join(METHODS)}"
    )
    prompt: str | None = arg(None, "the one prompt")
    data: str | None = arg(
        None,
        f"prompts from a JSONL file of rows {PROMPTS} (default: those of the shipped model's task)",
    )
    num_prompts: int = arg(8, "prompts at most")
    chat: bool = arg(False, "every prompt is a user's turn in the tokenizer's chat template")
    compare: str | None = arg(
        None,
        "settings of the sampler, as 'steps=8; threshold=0.9,block_length=8' (default: one block, "
        "four blocks by either semi-autoregressive method, random order, threshold 0.9; of these, "
        "what agrees with the options)",
    )
    html: bool = arg(False, HELP)

    def __post_init__(self) -> None:
        if self.num_prompts < 1:
            raise ValueError(f"num_prompts must be at least 1, got {self.num_prompts}")
        if self.prompt is not None and self.data is not None:
            raise ValueError("prompt and data both say what the prompts are: give one")


def settings(compare: str) -> dict[str, dict[str, str]]:
    """Sampler options by the name under which they are reported, which is how they were written."""
    found = {}
    for setting in (part.strip() for part in compare.split(";")):
        pairs = [pair.split("=", 1) for pair in setting.split(",") if pair.strip()]
        if any(len(pair) < 2 for pair in pairs):
            raise ValueError(
                f"compare={setting!r}: expected NAME=VALUE with commas between, and semicolons "
                "between settings"
            )
        found[setting or "as given"] = {name.strip(): value.strip() for name, value in pairs}
    return found


def default_settings(engine: Engine) -> dict[str, dict[str, str]]:
    """What is compared unless --compare says: settings that agree with the engine's options.

    The others are named in one line.
    """
    length = engine.sampler.gen_length
    block = engine.given.get("block_length") or (length // 4 if length % 4 == 0 else length)
    known = settings(
        f"block_length={length},sampling_method=fixed_length; "
        f"block_length={block},sampling_method=semi_ar_padding; "
        f"block_length={block},sampling_method=semi_ar_origin; remasking=random; threshold=0.9"
    )
    found = {name: options for name, options in known.items() if _agrees(engine, options)}
    left = f"the given options rule out {'; '.join(name for name in known if name not in found)}"
    if not found:
        raise ValueError(f"nothing to compare: {left}: say what by --compare")
    if len(found) < len(known):
        print(f"not compared, as {left}", file=sys.stderr)
    return found


def _agrees(engine: Engine, options: Mapping[str, str]) -> bool:
    """Are sampler options valid beside those given to the engine, and do they change none?"""
    if any(
        engine.given.get(name) not in (None, value)
        for name, value in coerce(SamplerConfig, options).items()
    ):
        return False
    try:
        engine.sampler_for(options)
    except ValueError:
        return False
    return True


def compare_methods(
    engine: Engine, prompts: Sequence[str], options: Mapping[str, Mapping[str, str]]
) -> dict[str, list[Completion]]:
    """Every setting's answers to the prompts, in their order.

    All settings are checked before the first forward.
    """
    samplers = {name: engine.sampler_for(given) for name, given in options.items()}
    answers = {}
    for name, sampler in samplers.items():
        done = dict(engine.generate([Request(prompt, sampler) for prompt in prompts]))
        answers[name] = [done[number] for number in range(len(prompts))]
    return answers


def agreement(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> float:
    """Share of places at which two lists of answers hold the same token, 0-1.

    Where one answer is longer, they do not.
    """
    pairs = [pair for one, other in zip(first, second) for pair in zip_longest(one, other)]
    return sum(one == other for one, other in pairs) / len(pairs) if pairs else 1.0


class Prompts(NamedTuple):
    """What is asked, and how long answers are unless the options say."""

    texts: list[str]
    gen_length: int


def prompts_of(config: AnalyzeConfig, folder: Path) -> Prompts:
    """The given prompts, else those of the task of the shipped model in the folder."""
    if config.prompt is not None:
        return Prompts([config.prompt], SamplerConfig.gen_length)
    if config.data is not None:
        texts = read_prompts(Path(config.data))[: config.num_prompts]
        return Prompts(texts, SamplerConfig.gen_length)
    for name, task in TASKS.items():
        if SHIPPED[name] == folder:
            return Prompts(task.prompts(config.num_prompts, 0), task.answer_length)
    raise ValueError(
        "give --prompt TEXT or --data FILE.jsonl: this checkpoint has no task of its own"
    )


def analyze(config: AnalyzeConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    """The report."""
    folder = resolve(options.get("pretrained"), options.get("revision"))
    prompts, gen_length = prompts_of(config, folder)
    engine = Engine(config.model, **{"gen_length": gen_length, **options})
    if config.chat:
        prompts = [engine.render_chat([{"role": "user", "content": prompt}]) for prompt in prompts]
    compared = default_settings(engine) if config.compare is None else settings(config.compare)
    answers = compare_methods(engine, prompts, compared)
    return {
        "checkpoint": engine.folder.name,
        "prompts": prompts,
        "gen_length": engine.sampler.gen_length,
        "methods": {name: _method(completions) for name, completions in answers.items()},
        **_comparisons(engine, answers),
        "attention": summarise(
            engine.model,
            [engine.encode(prompt) for prompt in prompts],
            engine.sampler.gen_length,
            engine.special.mask,
        ),
        "options": {**asdict(config), **options},
    }


def _method(completions: Sequence[Completion]) -> dict[str, Any]:
    """A method's answers, and the means of what they cost."""
    texts = [completion.text for completion in completions]
    return {"answers": texts, **_mean(completions, "num_forwards", "num_tokens", "seconds")}


def _comparisons(
    engine: Engine, answers: Mapping[str, Sequence[Completion]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Shares of equal tokens and of equal texts of each method with each."""
    texts = {name: [each.text for each in found] for name, found in answers.items()}
    ids = {name: [engine.encode(text) for text in found] for name, found in texts.items()}
    tokens = {one: {other: agreement(ids[one], ids[other]) for other in ids} for one in ids}
    whole = {one: {other: _equal(texts[one], texts[other]) for other in texts} for one in texts}
    return {"agreement": tokens, "same_text": whole}


def _equal(first: Sequence[str], second: Sequence[str]) -> float:
    """Share of equal texts in two lists of one length, 0-1."""
    return sum(one == other for one, other in zip(first, second)) / len(first)


def _mean(found: Sequence[Completion], *names: str) -> dict[str, float]:
    return {
        name: sum(getattr(completion, name) for completion in found) / len(found) for name in names
    }


def table(report: Mapping[str, Any]) -> str:
    """The report's numbers as Markdown."""
    methods = report["methods"]
    numbers = {name: str(number) for number, name in enumerate(methods, 1)}
    costs = [[numbers[name], name, *_costs(row)] for name, row in methods.items()]
    agreements = [
        [numbers[one], *(f"{value:.2f}" for value in row.values())]
        for one, row in report["agreement"].items()
    ]
    attention = [[row["block"], row["queries"], *_statistics(row)] for row in report["attention"]]
    parts = [
        f"{report['checkpoint']}, {len(report['prompts'])} prompts, means over them; seconds "
        "are this machine's",
        markdown(["", "method", "forwards", "tokens", "seconds"], costs),
        "share of equal tokens",
        markdown(["", *numbers.values()], agreements),
        f"attention before decoding, {report['gen_length']} masks: entropy (nats), distance "
        "(tokens), share of the prompt",
        markdown(["block", "queries", "entropy", "distance", "to prompt"], attention),
    ]
    return "\n\n".join(parts)


def _costs(row: Mapping[str, Any]) -> list[str]:
    """Of a method, as in the table."""
    forwards, tokens, seconds = row["num_forwards"], row["num_tokens"], row["seconds"]
    return [f"{forwards:.1f}", f"{tokens:.1f}", f"{seconds:.3f}"]


def _statistics(row: Mapping[str, Any]) -> list[str]:
    """Of attention, as in the table."""
    return [f"{row[field]:.2f}" for field in AttentionStatistics._fields]


def draw(report: Mapping[str, Any], folder: Path) -> None:
    """agreement.png and attention.png."""
    _draw_agreement(report["agreement"], folder / "agreement.png")
    _draw_attention(report["attention"], folder / "attention.png")


def _draw_agreement(shares: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """A square of colours with its numbers; the methods are the rows and the columns."""
    plot = pyplot()
    names, rows = list(shares), [list(row.values()) for row in shares.values()]
    side = max(4.0, 0.8 * len(names))
    figure, axes = plot.subplots(figsize=(side, side))
    axes.imshow(rows, cmap="Blues", vmin=0, vmax=1)
    box = dict(facecolor="white", edgecolor="none")
    for row, values in enumerate(rows):
        for column, value in enumerate(values):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", bbox=box)
    numbers = range(1, len(names) + 1)
    axes.set_xticks(range(len(names)), numbers)
    axes.set_yticks(range(len(names)), numbers)
    # below: beside the rows, long names would leave no room for the square
    listed = "\n".join(f"{number}  {name}" for number, name in zip(numbers, names))
    axes.set_xlabel(listed, loc="left", linespacing=1.4)
    axes.set(title="Share of equal tokens")
    save(figure, path, "Share of tokens that the answers of each two methods have in common")


def _draw_attention(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A panel for each statistic: its mean over the blocks' heads, block by block."""
    plot = pyplot()
    fields = AttentionStatistics._fields
    # one below the other: side by side they cannot be read on a telephone
    size = SIZE[0], 2.4 * len(fields)
    figure, panels = plot.subplots(len(fields), figsize=size, sharex=True, layout="constrained")
    for axes, field, unit in zip(panels, fields, ("nats", "tokens", "share")):
        for group in ("prompt", "masked"):
            values = [row[field] for row in rows if row["queries"] == group]
            axes.plot(range(1, len(values) + 1), values, marker="o", label=f"queries: {group}")
        axes.set(title=field.replace("_", " "), ylabel=unit)
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[-1].set_xlabel("block")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    save(figure, path, "Where prompts and masks look before decoding, block by block")


def run(config: AnalyzeConfig, options: Mapping[str, Any]) -> str:
    """Analyse, and write the report into config.output; returns its table."""
    pyplot()  # what is missing is said before the work
    check_empty(Path(config.output))
    report = analyze(config, options)
    with whole_folder(Path(config.output)) as partial:
        (partial / "analyze.json").write_text(
            json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (partial / "table.md").write_text(table(report) + "\n", encoding="utf-8")
        draw(report, partial)
        if config.html:
            write_page(partial, "Samplers on the same prompts", table(report), report)
    return table(report)
