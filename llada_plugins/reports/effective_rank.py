"""Effective rank of the masked positions' hidden states."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from llada_plugins.files.atomic import check_empty, whole_folder
from llada_plugins.files.jsonl import read_rows
from llada_plugins.methods.router import Router, RouterConfig, load_router
from llada_plugins.methods.routing import seeded_embeddings
from llada_plugins.models import text
from llada_plugins.models.folder import SHIPPED, known_special_tokens, resolve
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.loading import load_model
from llada_plugins.models.tokenizer import has_tokenizer, load_tokenizer
from llada_plugins.options.fields import arg
from llada_plugins.tasks.registry import TASKS

from .render import SIZE, legend_below, pyplot, save
from .report_page import HELP, write_page

COLUMNS = {
    "baseline": "baseline",
    "random_router": "random router, replacing",
    "router": "trained router",
}
FORMS = '{"prompt": text, …} or {"input_ids": [ids], "prompt_length": number}'
NUM_MASKS = 16  # where no task of the package says how long an answer is


@dataclass(frozen=True, kw_only=True)
class RankOptions:
    """What is compared on which prompts."""

    output: str = arg(help="folder for the report; must be empty or absent")
    pretrained: str | None = arg(
        None, "checkpoint folder or hub id (default: the model that is shipped for the task)"
    )
    router: str | None = arg(
        None,
        "folder of a trained router (default: 'router' in the checkpoint's folder, if it is there)",
    )
    task: Literal["sudoku4", "nim"] | None = arg(
        None, "prompts of a shipped task (default: nim for the shipped nim model, else sudoku4)"
    )
    data: str | None = arg(None, f"prompts from a JSONL file in place of a task's, of rows {FORMS}")
    prompt_length: int | None = arg(None, "prompts of so many random ids in place of a task's")
    num_prompts: int = arg(32, "prompts at most, over which ranks are averaged")
    num_masks: int | None = arg(
        None,
        f"masked tokens after each prompt (default: the task's answer length; {NUM_MASKS} for "
        "other prompts)",
    )
    seed: int = arg(0, "of the random router, the task's problems and random prompts")
    device: str = arg("auto", "auto (a GPU if there is one), cpu, cuda or cuda:N")
    dtype: str = arg("auto", "auto (bfloat16 on a GPU, else float32), float32, bfloat16 or float16")
    html: bool = arg(False, HELP)

    def __post_init__(self) -> None:
        for name in ("prompt_length", "num_prompts", "num_masks"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        given = [
            name for name in ("task", "data", "prompt_length") if getattr(self, name) is not None
        ]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} all say what the prompts are: give one")


def effective_rank(states: Tensor) -> Tensor:
    """exp(entropy) of a matrix's normalised singular values (Roy & Vetterli 2007, definition 1).

    states: (..., N, D). Returns (...), fp64, from 1 to min(N, D). 1 = all rows are
    multiples of one; NaN for a matrix of zeros. The paper is "The effective rank",
    EUSIPCO 2007.
    """
    values = torch.linalg.svdvals(states.double())  # (..., min(N, D))
    share = values / values.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1).exp()


@torch.inference_mode()
def mask_ranks(
    model: LLaDA, prompts: Sequence[Sequence[int]], num_masks: int, router: Router | None = None
) -> list[float]:
    """Effective rank of the masked positions' states (num_masks, D), mean over prompts.

    At the input, then after every layer.
    """
    mask_id = known_special_tokens(model).mask
    ranks = []
    for prompt in prompts:
        tokens = torch.tensor([[*prompt, *[mask_id] * num_masks]], device=model.device)  # (1, L)
        start = torch.tensor([len(prompt)], device=model.device)
        embeds = None
        if router is not None:
            embeds = seeded_embeddings(router, model.embedding, tokens, start, mask_id)
        states = model.hidden_states(tokens, inputs_embeds=embeds, every_layer=True)
        masked = torch.stack([state[0, len(prompt) :].cpu() for state in states])
        ranks.append(effective_rank(masked))  # (n_layers + 1,)
    return torch.stack(ranks).mean(0).tolist()


def random_router(model: LLaDA, num_masks: int, seed: int) -> Router:
    """A fresh router that replaces the mask embedding, its weights from the seed.

    The global random state stays as it was.
    """
    config = RouterConfig(
        d_model=model.config.d_model,
        heads=model.config.n_heads,
        mode="replace",
        max_positions=max(num_masks, 1024),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Router(config).to(model.device).eval()


def read_prompts(path: Path, encode: Callable[[str], list[int]]) -> list[list[int]]:
    """The prompts of a JSONL file as ids.

    Raises FileNotFoundError, or ValueError that names file and line.
    """

    def prompt(row: Any) -> list[int]:
        ids = _prompt_ids(row, encode)
        if not ids or not all(type(token) is int for token in ids):
            raise ValueError(f"expected {FORMS}, the prompt not empty")
        return ids

    return read_rows(path, prompt, FORMS)


def load_prompts(options: RankOptions, folder: Path, model: LLaDA) -> list[list[int]]:
    """Token prompts: random ids, those of --data, or a task's."""
    if options.prompt_length is not None:
        mask_id = known_special_tokens(model).mask
        generator = torch.Generator().manual_seed(options.seed)
        ids = torch.randint(
            model.config.vocab_size - 1,
            (options.num_prompts, options.prompt_length),
            generator=generator,
        )
        return (ids + (ids >= mask_id)).tolist()

    tokenizer = load_tokenizer(folder) if has_tokenizer(folder) else None

    def encode(string: str) -> list[int]:
        if tokenizer is None:
            raise FileNotFoundError(
                f"{folder} has no tokenizer.json: pass --prompt_length N for random prompts, or "
                "--data with rows of "
                "input_ids"
            )
        return text.encode(tokenizer, string)

    if options.data is not None:
        return read_prompts(Path(options.data), encode)[: options.num_prompts]
    return [
        encode(prompt)
        for prompt in TASKS[_task(options, folder)].prompts(options.num_prompts, options.seed)
    ]


def check_prompts(prompts: Sequence[Sequence[int]], num_masks: int, model: LLaDA) -> None:
    """Raise ValueError on a prompt that the model cannot read, or without room for the masks."""
    longest = max(map(len, prompts))
    if longest + num_masks > model.config.max_sequence_length:
        raise ValueError(
            f"a prompt of {longest} tokens and num_masks={num_masks} exceed the model's context of "
            f"{model.config.max_sequence_length} tokens: shorten the prompts or lower --num_masks"
        )
    largest = max(max(prompt) for prompt in prompts)
    if largest >= model.config.num_embeddings or min(min(prompt) for prompt in prompts) < 0:
        raise ValueError(
            f"prompt ids must be from 0 to {model.config.num_embeddings - 1}, found one outside: "
            "made with another tokenizer?"
        )


def compare(options: RankOptions) -> dict[str, Any]:
    """The report; without a trained router it has no entry "router"."""
    folder = resolve(options.pretrained or options.task)
    model = load_model(folder, device=options.device, dtype=options.dtype)
    of_task = options.data is None and options.prompt_length is None
    num_masks = options.num_masks or (
        TASKS[_task(options, folder)].answer_length if of_task else NUM_MASKS
    )
    prompts = load_prompts(options, folder, model)
    check_prompts(prompts, num_masks, model)
    routers: dict[str, Router | None] = {
        "baseline": None,
        "random_router": random_router(model, num_masks, options.seed),
    }
    place = Path(options.router).expanduser() if options.router else folder / "router"
    if options.router or place.is_dir():
        routers["router"] = load_router(place, model)
    ranks = {
        name: mask_ranks(model, prompts, num_masks, router) for name, router in routers.items()
    }
    return {
        **ranks,
        "num_masks": num_masks,
        "num_prompts": len(prompts),
        "checkpoint": folder.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "options": asdict(options),
    }


def run(options: RankOptions) -> dict[str, Any]:
    """Compare, and write the report into options.output; returns it."""
    pyplot()  # what is missing is said before the work
    check_empty(Path(options.output))
    report = compare(options)
    with whole_folder(Path(options.output)) as partial:
        (partial / "effective_rank.json").write_text(
            json.dumps(report, indent=1) + "\n", encoding="utf-8"
        )
        draw(report, partial / "effective_rank.png")
        if options.html:
            write_page(partial, "Effective rank of masked positions", table(report), report)
    return report


def table(report: Mapping[str, Any]) -> str:
    """The ranks as a Markdown table, one row a layer."""
    names = [name for name in COLUMNS if name in report]
    lines = [
        f"effective rank of {report['num_masks']} masked positions, mean over "
        f"{report['num_prompts']} prompts, "
        f"{report['checkpoint']}",
        "",
        "| after | " + " | ".join(COLUMNS[name] for name in names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for layer, values in enumerate(zip(*(report[name] for name in names))):
        lines.append(
            f"| {f'layer {layer}' if layer else 'input'} | "
            + " | ".join(f"{value:.2f}" for value in values)
            + " |"
        )
    if "router" not in report:
        lines += [
            "",
            "no trained router: none beside the checkpoint and no --router; python -m "
            "training.router_sft makes one",
        ]
    return "\n".join(lines)


def draw(report: Mapping[str, Any], path: Path) -> None:
    """The ranks over layers as a PNG."""
    plot = pyplot()
    figure, axes = plot.subplots(figsize=SIZE)
    for name, label in COLUMNS.items():
        if name in report:
            axes.plot(report[name], marker="o", label=label)
    axes.set(
        title=f"Effective rank of {report['num_masks']} masked positions",
        xlabel="layer (0 = input)",
        ylabel="effective rank",
    )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(0, report["num_masks"] + 0.5)
    legend_below(axes)
    save(figure, path, "How many directions the states of masked positions span after each layer")


def _prompt_ids(row: Any, encode: Callable[[str], list[int]]) -> list[Any]:
    """The prompt of a row in one of FORMS; of another row, nothing."""
    if isinstance(row, dict) and isinstance(row.get("prompt"), str):
        return encode(row["prompt"])
    if (
        isinstance(row, dict)
        and isinstance(row.get("input_ids"), list)
        and type(row.get("prompt_length")) is int
    ):
        return row["input_ids"][: max(0, row["prompt_length"])]
    return []


def _task(options: RankOptions, folder: Path) -> str:
    return options.task or ("nim" if folder == SHIPPED["nim"] else "sudoku4")
