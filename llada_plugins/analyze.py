"""What sampling methods answer, what they cost, and where the model looks: texts, forwards, seconds, agreement; attention by layer.

    python -m llada_plugins.analyze --output outputs/analyze                                          the tiny model on 4x4 sudoku; seconds
    python -m llada_plugins.analyze --pretrained DIR --data FILE.jsonl --gen_length 256 --output DIR --compare "steps=256; threshold=0.9"

--compare has sampler options as --gen_kwargs has them, settings with semicolons between; an empty one is the model's own. Every option of
the model is a flag of the same name. Writes analyze.json, table.md, agreement.png and attention.png, all or none.
"""
from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from llada_plugins.engine.engine import Completion, Engine, Request
from llada_plugins.engine.flags import read_flags
from llada_plugins.methods.table import METHODS
from llada_plugins.models import text
from llada_plugins.models.llada import Block, LLaDA, rotate
from llada_plugins.models.loading import SHIPPED, resolve
from llada_plugins.options.fields import arg, coerce
from llada_plugins.reports.render import check_empty, markdown, pyplot, whole_folder
from llada_plugins.sampling.config import SamplerConfig

from .effective_rank import TASKS

USAGE = "python -m llada_plugins.analyze --output DIR [--prompt TEXT | --data FILE.jsonl] [--compare SETTINGS] [--OPTION VALUE ...]"
FORM = '{"prompt": text, …}'
Measured = TypeVar("Measured")


@dataclass(frozen=True, kw_only=True)
class AnalyzeConfig:
    """What is compared on which prompts."""

    output: str = arg(help="folder for the report; must be empty or absent")
    model: Literal[tuple(METHODS)] = arg("llada", f"one of {', '.join(METHODS)}")
    prompt: str | None = arg(None, "the one prompt")
    data: str | None = arg(None, f"prompts from a JSONL file of rows {FORM} (default: those of the shipped model's task)")
    num_prompts: int = arg(8, "prompts at most")
    chat: bool = arg(False, "every prompt is a user's turn in the tokenizer's chat template")
    compare: str | None = arg(None, "settings of the sampler, as 'steps=8; threshold=0.9,block_length=8' (default: one block, four blocks "
                                    "by either semi-autoregressive method, random order, threshold 0.9; of these, what agrees with the options)")

    def __post_init__(self) -> None:
        if self.num_prompts < 1:
            raise ValueError(f"num_prompts must be at least 1, got {self.num_prompts}")
        if self.prompt is not None and self.data is not None:
            raise ValueError("prompt and data both say what the prompts are: give one")


# --- sampling methods ------------------------------------------------------------------------------------------------

def settings(compare: str) -> dict[str, dict[str, str]]:
    """Sampler options by the name under which they are reported, which is how they were written."""
    found = {}
    for setting in (part.strip() for part in compare.split(";")):
        pairs = [pair.split("=", 1) for pair in setting.split(",") if pair.strip()]
        if any(len(pair) < 2 for pair in pairs):
            raise ValueError(f"compare={setting!r}: expected NAME=VALUE with commas between, and semicolons between settings")
        found[setting or "as given"] = {name.strip(): value.strip() for name, value in pairs}
    return found


def default_settings(engine: Engine) -> dict[str, dict[str, str]]:
    """What is compared unless --compare says: those that agree with the options given to the engine; the others are named in one line."""
    length = engine.sampler.gen_length
    block = engine.given.get("block_length") or (length // 4 if length % 4 == 0 else length)
    known = settings(f"block_length={length},sampling_method=fixed_length; block_length={block},sampling_method=semi_ar_padding; "
                     f"block_length={block},sampling_method=semi_ar_origin; remasking=random; threshold=0.9")
    found = {name: options for name, options in known.items() if _agrees(engine, options)}
    left = f"the given options rule out {'; '.join(name for name in known if name not in found)}"
    if not found:
        raise ValueError(f"nothing to compare: {left}: say what by --compare")
    if len(found) < len(known):
        print(f"not compared, as {left}", file=sys.stderr)
    return found


def _agrees(engine: Engine, options: Mapping[str, str]) -> bool:
    """Are sampler options valid beside those given to the engine, and none of them another value of one?"""
    if any(engine.given.get(name) not in (None, value) for name, value in coerce(SamplerConfig, options).items()):
        return False
    try:
        engine.sampler_for(options)
    except ValueError:
        return False
    return True


def compare_methods(engine: Engine, prompts: Sequence[str], options: Mapping[str, Mapping[str, str]]) -> dict[str, list[Completion]]:
    """Every setting's answers to the prompts, in their order. All settings are checked before the first forward."""
    samplers = {name: engine.sampler_for(given) for name, given in options.items()}
    answers = {}
    for name, sampler in samplers.items():
        done = dict(engine.generate([Request(prompt, sampler) for prompt in prompts]))
        answers[name] = [done[number] for number in range(len(prompts))]
    return answers


def agreement(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> float:
    """Share of places at which two lists of answers hold the same token, 0-1; where one answer is longer, they do not."""
    pairs = [pair for one, other in zip(first, second) for pair in zip_longest(one, other)]
    return sum(one == other for one, other in pairs) / len(pairs) if pairs else 1.0


# --- attention -------------------------------------------------------------------------------------------------------

def attention(block: Block, x: Tensor, cos: Tensor, sin: Tensor, visible: Tensor | None) -> Tensor:
    """The attention weights of a block on its input: (B, L, D) -> (B, H, queries, keys), fp32, by its own projections."""
    config, h = block.config, block.attn_norm(x)
    q, k = (proj(h).view(*x.shape[:2], -1, config.head_dim).transpose(1, 2) for proj in (block.q_proj, block.k_proj))
    q, k = (rotate(each, cos, sin, config.rope_full_precision).float() for each in (q, k))
    k = k.repeat_interleave(config.n_heads // config.num_kv_heads, 1)
    score = q @ k.transpose(-1, -2) * config.head_dim ** -0.5
    if visible is not None:
        score = score.masked_fill(~visible, -math.inf)
    return score.softmax(-1)


@torch.inference_mode()
def each_attention(model: LLaDA, tokens: Tensor, measure: Callable[[Tensor], Measured]) -> dict[str, Measured]:
    """`measure` of the attention weights of every block in a forward of tokens (B, L), by the block's name; one block's exist at a time."""
    found: dict[str, Measured] = {}
    hooks = []
    for name, block in model.named_modules():
        if isinstance(block, Block):
            def hook(block: Block, given: tuple, output: Tensor, name: str = name) -> None:
                x, cos, sin, view = given
                found[name.removeprefix("model.").removeprefix("transformer.")] = measure(attention(block, x, cos, sin, view.visible))
            hooks.append(block.register_forward_hook(hook))
    try:
        model.hidden_states(tokens)
    finally:
        for handle in hooks:
            handle.remove()
    return found


class Looks(NamedTuple):
    """Where the queries of a group look, per head (H,): means over queries."""

    entropy: Tensor      # nats; ln L where attention is uniform over L places
    distance: Tensor     # tokens between query and key
    to_prompt: Tensor    # share of attention that goes to the prompt, 0-1


def looks(weights: Tensor, prompt_length: int) -> dict[str, Looks]:
    """Of weights (1, H, L, L) of a prompt and the masks behind it: the queries of either."""
    place = torch.arange(weights.shape[-1], device=weights.device)
    entropy = torch.special.entr(weights).sum(-1)[0]                                           # (H, L)
    distance = (weights * (place[:, None] - place).abs()).sum(-1)[0]
    to_prompt = weights[..., :prompt_length].sum(-1)[0]
    return {name: Looks(*(values[:, queries].mean(-1).cpu() for values in (entropy, distance, to_prompt)))
            for name, queries in (("prompt", slice(prompt_length)), ("masked", slice(prompt_length, None)))}


def summarise(model: LLaDA, prompts: Sequence[Sequence[int]], num_masks: int, mask_id: int) -> list[dict[str, Any]]:
    """A row for each block and group of queries, means over prompts: before decoding, when the whole answer is masked; without a router."""
    measured = [each_attention(model, torch.tensor([[*prompt, *[mask_id] * num_masks]], device=model.device),
                               lambda weights: looks(weights, len(prompt))) for prompt in prompts]
    rows = []
    for name in measured[0]:
        for group in ("prompt", "masked"):
            heads = {field: torch.stack([getattr(each[name][group], field) for each in measured]).mean(0) for field in Looks._fields}
            rows.append({"block": name, "queries": group, **{field: float(values.mean()) for field, values in heads.items()},
                         "heads": {field: values.tolist() for field, values in heads.items()}})
    return rows


# --- the report ------------------------------------------------------------------------------------------------------

def read_prompts(path: Path) -> list[str]:
    """The prompts of a JSONL file; raises FileNotFoundError, or ValueError naming file and line."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such data file; give a JSONL file with rows {FORM}")
    prompts = []
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not (isinstance(row, dict) and isinstance(row.get("prompt"), str) and row["prompt"]):
                raise ValueError(f"{path}:{number}: expected {FORM}, the prompt not empty")
            try:
                text.check_unicode(row["prompt"])
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from None
            prompts.append(row["prompt"])
    if not prompts:
        raise ValueError(f"{path}: no rows; give a JSONL file with rows {FORM}")
    return prompts


def analyze(config: AnalyzeConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    """The report."""
    folder = resolve(options.get("pretrained"), options.get("revision"))
    task = next((name for name in TASKS if SHIPPED[name] == folder), None)
    if config.prompt is None and config.data is None and task is None:
        raise ValueError("give --prompt TEXT or --data FILE.jsonl: this checkpoint has no task of its own")
    if config.prompt is not None:
        prompts, of_task = [config.prompt], {"gen_length": SamplerConfig.gen_length}
    elif config.data is not None:
        prompts = read_prompts(Path(config.data))[:config.num_prompts]
        of_task = {"gen_length": SamplerConfig.gen_length}
    else:
        prompts, of_task = TASKS[task].prompts(config.num_prompts, 0), {"gen_length": TASKS[task].answer_length}
    engine = Engine(config.model, **{**of_task, **options})
    if config.chat:
        prompts = [engine.render_chat([{"role": "user", "content": prompt}]) for prompt in prompts]
    answers = compare_methods(engine, prompts, default_settings(engine) if config.compare is None else settings(config.compare))
    ids = {name: [engine.encode(completion.text) for completion in found] for name, found in answers.items()}
    return {
        "checkpoint": engine.folder.name, "prompts": prompts, "gen_length": engine.sampler.gen_length,
        "methods": {name: {"answers": [completion.text for completion in found], **_mean(found, "num_forwards", "num_tokens", "seconds")}
                    for name, found in answers.items()},
        "agreement": {one: {other: agreement(ids[one], ids[other]) for other in ids} for one in ids},
        "same_text": {one: {other: sum(a.text == b.text for a, b in zip(answers[one], answers[other])) / len(prompts) for other in answers}
                      for one in answers},
        "attention": summarise(engine.model, [engine.encode(prompt) for prompt in prompts], engine.sampler.gen_length, engine.special.mask),
        "options": {**asdict(config), **options}}


def _mean(found: Sequence[Completion], *names: str) -> dict[str, float]:
    return {name: sum(getattr(completion, name) for completion in found) / len(found) for name in names}


def table(report: Mapping[str, Any]) -> str:
    """The report's numbers as Markdown."""
    methods, attention_rows = report["methods"], report["attention"]
    numbered = {name: str(number) for number, name in enumerate(methods, 1)}
    costs = [[numbered[name], name, f"{row['num_forwards']:.1f}", f"{row['num_tokens']:.1f}", f"{row['seconds']:.3f}"]
             for name, row in methods.items()]
    agreements = [[numbered[one], *(f"{value:.2f}" for value in row.values())] for one, row in report["agreement"].items()]
    looked = [[row["block"], row["queries"], *(f"{row[field]:.2f}" for field in Looks._fields)] for row in attention_rows]
    return "\n\n".join([
        f"{report['checkpoint']}, {len(report['prompts'])} prompts, means over them; seconds are this machine's",
        markdown(["", "method", "forwards", "tokens", "seconds"], costs),
        "share of equal tokens", markdown(["", *numbered.values()], agreements),
        f"attention before decoding, {report['gen_length']} masks: entropy (nats), distance (tokens), share of the prompt",
        markdown(["block", "queries", "entropy", "distance", "to prompt"], looked)])


def draw(report: Mapping[str, Any], folder: Path) -> None:
    """agreement.png and attention.png."""
    plot = pyplot()
    names, shares = list(report["agreement"]), [list(row.values()) for row in report["agreement"].values()]
    figure, axes = plot.subplots(figsize=(1.5 + 0.8 * len(names), 1.5 + 0.8 * len(names)))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, values in enumerate(shares):
        for column, value in enumerate(values):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", bbox=dict(facecolor="white", edgecolor="none"))
    axes.set_xticks(range(len(names)), range(1, len(names) + 1))
    axes.set_yticks(range(len(names)), [f"{name}  {number}" for number, name in enumerate(names, 1)])
    axes.set(title="Share of equal tokens")
    figure.savefig(folder / "agreement.png", dpi=120, bbox_inches="tight")
    plot.close(figure)
    figure, panels = plot.subplots(1, len(Looks._fields), figsize=(12, 4))
    for axes, field, unit in zip(panels, Looks._fields, ("nats", "tokens", "share")):
        for group in ("prompt", "masked"):
            values = [row[field] for row in report["attention"] if row["queries"] == group]
            axes.plot(range(1, len(values) + 1), values, marker="o", label=f"queries: {group}")
        axes.set(title=field.replace("_", " "), xlabel="block", ylabel=unit)
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[0].legend()
    figure.savefig(folder / "attention.png", dpi=120, bbox_inches="tight")
    plot.close(figure)


def run(config: AnalyzeConfig, options: Mapping[str, Any]) -> str:
    """Analyse, and write the report into config.output; returns its table."""
    pyplot()        # what is missing is said before the work
    check_empty(Path(config.output))
    report = analyze(config, options)
    with whole_folder(Path(config.output)) as partial:
        (partial / "analyze.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (partial / "table.md").write_text(table(report) + "\n", encoding="utf-8")
        draw(report, partial)
    return table(report)


def main(argv: Sequence[str] | None = None) -> int:
    """The user's mistakes end it with one line and status 1."""
    try:
        print(run(*read_flags(AnalyzeConfig, argv, usage=USAGE, description=__doc__)))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
