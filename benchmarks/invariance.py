"""How far answers and likelihoods depend on batches and order, in float32 and in bfloat16.

    python -m benchmarks.invariance
        the shipped sudoku model under the rules, caches and methods of tests/invariance.py
    python -m benchmarks.invariance --device cuda --pretrained DIR --only "rule=plain"
        a checkpoint of yours on a GPU; DIR needs a tokenizer
    python -m benchmarks.invariance --pretrained random
        small random checkpoints of every family

Needs a clone: the table of cells is tests/invariance.py, which holds float32 on a CPU to full
agreement. Each cell decodes its prompts one by one, then in batches of 3 in reverse, and in
batches of 8 from another one on. Reported is how much of that agrees with one by one: the share
of equal texts and tokens, the earliest forward that did something else, and the largest
difference of log-likelihoods. The exit status is 1 where float32 on a CPU differs.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llada_plugins.diffusion.batch_limit import BatchLimit
from llada_plugins.diffusion.denoiser import capacity
from llada_plugins.diffusion.random_streams import request_key
from llada_plugins.engine.engine import Engine
from llada_plugins.engine.judging import block_review
from llada_plugins.engine.request import completed
from llada_plugins.models.folder import TINY, read_config, resolve
from llada_plugins.models.placement import DTYPES, pick_device
from llada_plugins.options.fields import arg
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.decode import decode_each
from llada_plugins.sampling.draft import unreviewed
from llada_plugins.sampling.generate import with_options
from llada_plugins.sampling.step import Step
from llada_plugins.tasks import sudoku
from tests.invariance import (
    CACHES,
    NETWORKS,
    PROMPTS,
    RULES,
    WITH_METHODS,
    Cell,
    Engines,
    pairs_of,
    ways_of,
)
from tests.invariance import values as likelihoods

from .clock import device_name
from .command import check_counts, check_folder, run_benchmark

RANDOM, SHIPPED = "random", "sudoku4"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is compared, and where."""

    pretrained: str = arg(
        SHIPPED, "checkpoint: sudoku4 (the shipped one), random (one of each family) or a folder"
    )
    device: str = arg("cpu", "auto (a GPU if there is one), cpu, cuda or cuda:N")
    dtypes: str = arg("float32,bfloat16", "of the weights, separated by commas")
    num: int = arg(8, "prompts of a cell; those of random checkpoints and folders are 8")
    gen_length: int = arg(16, "answer length in tokens")
    only: str = arg("", "cells whose line has this text in it, such as rule=plain")
    threads: int = arg(1, "CPU threads")
    json: str | None = arg(None, "file for the results as JSON")

    def __post_init__(self) -> None:
        check_counts(self, "num", "gen_length", "threads")
        for name in self.dtypes.split(","):
            if name not in DTYPES:
                raise ValueError(f"dtypes must be of {', '.join(DTYPES)}, got {name!r}")
        check_folder("json", self.json)
        pick_device(self.device)


class Checkpoints(Engines):
    """Engines of one checkpoint."""

    def __init__(self, source: Path, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        self.source = source

    def checkpoint(self, family: str) -> Path:
        """The one."""
        return self.source


def cells_of(engines: Engines, network: str) -> list[Cell]:
    """Every rule, every cache and every method that the network has, each beside plain others.

    Of random checkpoints those of tests/invariance.py, in which they meet.
    """
    if not isinstance(engines, Checkpoints):
        return engines.cells(network)[0]
    cells = [
        *(Cell(network, "llada", "auto", rule) for rule in RULES),
        *(Cell(network, "llada", cache, "plain") for cache in CACHES if cache != "auto"),
        *(Cell(network, method, "auto", "plain") for method in WITH_METHODS if method != "llada"),
    ]
    return [cell for cell in cells if engines.refusal(cell) is None]


class Answer(NamedTuple):
    """What came of a prompt."""

    text: str
    tokens: list[int]
    forwards: list[bytes]  # what each forward kept, masked again or replaced


def decoded(
    engine: Engine, sampler: SamplerConfig, prompts: Sequence[str], order: Sequence[int], size: int
) -> list[Answer]:
    """Answers to the prompts, in their own order, decoded in that one in batches of `size`."""
    ids = [engine.encode(prompts[number]) for number in order]
    forwards: dict[int, list[bytes]] = {row: [] for row in range(len(order))}

    def observe(step: Step) -> None:
        changed = step.kept | step.replaced
        tokens = step.proposal.masked_fill(~changed, -1).masked_fill(step.remasked, -2).cpu()
        for row, of_row in zip(step.rows.tolist(), tokens.numpy()):
            forwards[row].append(of_row.tobytes())

    samples = dict(
        decode_each(
            with_options(engine.denoise, sampler, engine.special),
            ids,
            sampler,
            engine.special,
            device=engine.model.device,
            keys=[request_key(sampler.seed, prompt) for prompt in ids],
            on_step=observe,
            review=review_of(engine, sampler, ids, [prompts[number] for number in order]),
            in_step=engine.prepared.judge is not None,
            at_once=BatchLimit(capacity(size)),
        )
    )
    found = {}
    for row, number in enumerate(order):
        text = completed(samples[row], (), engine.tokenizer, engine.special.ends).text
        found[number] = Answer(text, samples[row].answer, forwards[row])
    return [found[number] for number in range(len(order))]


def review_of(
    engine: Engine, sampler: SamplerConfig, ids: Sequence[list[int]], prompts: Sequence[str]
) -> Any:
    """The method's review of answers to these prompts."""
    judge = engine.prepared.judge
    if judge is None:
        return unreviewed
    return block_review(
        judge,
        sampler,
        [judge.question(prompt) for prompt in prompts],
        tokenizer=engine.tokenizer,
        special=engine.special,
        shorten=lambda row: None,
        tails=[sampler.blocks.tail(len(prompt)) for prompt in ids],
    )


def agreement(alone: Sequence[Answer], others: Sequence[Sequence[Answer]]) -> dict[str, Any]:
    """Shares of what is equal, and the first forward (from 1) that differs; None: none does."""
    pairs = [pair for other in others for pair in zip(alone, other, strict=True)]
    tokens = [
        (place < len(one.tokens) and place < len(other.tokens))
        and one.tokens[place] == other.tokens[place]
        for one, other in pairs
        for place in range(max(len(one.tokens), len(other.tokens)))
    ]
    first = [
        1 + next(n for n in range(len(one.forwards) + 1) if one.forwards[n:][:1] != rest[n:][:1])
        for one, other in pairs
        for rest in [other.forwards]
        if one.forwards != rest
    ]
    return {
        "texts": sum(one.text == other.text for one, other in pairs) / len(pairs),
        "tokens": sum(tokens) / len(tokens),
        "first": min(first, default=None),
    }


def measured_cell(
    engines: Engines, cell: Cell, prompts: Sequence[str], gen_length: int
) -> dict[str, Any]:
    """How far a cell's answers agree."""
    engine = engines.engine(cell.network, cell.method)
    given = cell.options
    if given["block_length"] == given["gen_length"]:
        given["block_length"] = gen_length
    sampler = engine.sampler_for({**given, "gen_length": gen_length})
    every = list(range(len(prompts)))
    alone = decoded(engine, sampler, prompts, every, 1)
    others = [
        decoded(engine, sampler, prompts, every[::-1], 3),
        decoded(engine, sampler, prompts, every[3:] + every[:3], 8),
    ]
    return {**cell._asdict(), **agreement(alone, others)}


def measured_way(engines: Engines, network: str, method: str, way: str) -> dict[str, Any]:
    """How far likelihoods of one way to score agree."""
    engine = engines.scoring(network, method, way)
    alone, *others = likelihoods(engine, pairs_of(engine)).values()
    pairs = [pair for other in others for pair in zip(alone, other)]
    return {
        "network": network,
        "method": method,
        "scoring": way,
        "largest": max(abs(one.value - other.value) for one, other in pairs),
        "mean": sum(abs(one.value) for one in alone) / len(alone),
    }


def sources(options: Options, folder: Path, **given: Any) -> tuple[Engines, list[str], list[str]]:
    """Engines, their networks, and prompts."""
    if options.pretrained == RANDOM:
        return Engines(folder, **given), list(NETWORKS), list(PROMPTS)
    if options.pretrained == SHIPPED:
        puzzles = [problem.puzzle for problem in sudoku.problems("test", options.num)]
        return Checkpoints(TINY, folder, **given), ["llada"], puzzles
    source = Path(resolve(options.pretrained, option="pretrained"))
    config = read_config(source)
    name = f"{config.family}/{config.attention}"
    network = name if name in NETWORKS else config.family
    return Checkpoints(source, folder, **given), [network], list(PROMPTS)


@contextmanager
def unwarned() -> Iterator[None]:
    """No warnings within: every cell would say what its options surprise with."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@unwarned()
def run(options: Options) -> dict[str, Any]:
    """The whole comparison; its result can be written as JSON."""
    device = pick_device(options.device)
    result: dict[str, Any] = {"device": device_name(device), "cells": [], "scoring": []}
    for dtype in options.dtypes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            given = {"device": str(device), "dtype": dtype, "batch_size": 8}
            engines, networks, prompts = sources(options, Path(folder), **given)
            for network in networks:
                for cell in cells_of(engines, network):
                    if options.only in line_of(cell._asdict()):
                        found = measured_cell(engines, cell, prompts, options.gen_length)
                        result["cells"].append({"dtype": dtype, **found})
                for method, way in ways_of(network):
                    if options.only in line_of(dict(network=network, method=method, scoring=way)):
                        found = measured_way(engines, network, method, way)
                        result["scoring"].append({"dtype": dtype, **found})
    return result


def line_of(names: dict[str, str]) -> str:
    """Names of rows in a line."""
    return " ".join(f"{table}={name}" for table, name in names.items())


def table(result: dict[str, Any]) -> str:
    """A line a cell, and the sums of each dtype."""
    lines = [f"{result['device']}: of all answers in batches of 3 and of 8, equal to one by one"]
    lines += [f"{'dtype':<10}{'texts':>7}{'tokens':>8}{'first':>7}  cell"]
    for row in result["cells"]:
        names = {name: row[name] for name in Cell._fields}
        lines.append(
            f"{row['dtype']:<10}{row['texts']:>7.3f}{row['tokens']:>8.3f}"
            f"{row['first'] or '-':>7}  {line_of(names)}"
        )
    lines += [f"{'dtype':<10}{'largest':>9}{'of':>9}  log-likelihoods, nats"]
    for row in result["scoring"]:
        names = {name: row[name] for name in ("network", "method", "scoring")}
        lines.append(
            f"{row['dtype']:<10}{row['largest']:>9.1e}{row['mean']:>9.2f}  {line_of(names)}"
        )
    return "\n".join(lines + summary(result))


def summary(result: dict[str, Any]) -> list[str]:
    """A line a dtype: means of shares, the earliest forward, the largest difference."""
    lines = []
    for dtype in dict.fromkeys(row["dtype"] for row in result["cells"] + result["scoring"]):
        cells = [row for row in result["cells"] if row["dtype"] == dtype]
        largest = [row["largest"] for row in result["scoring"] if row["dtype"] == dtype]
        line = f"{dtype}:"
        if cells:
            whole = sum(row["first"] is None for row in cells)
            texts, tokens = (
                sum(row[name] for row in cells) / len(cells) for name in ("texts", "tokens")
            )
            line += f" {whole} of {len(cells)} cells equal, texts {texts:.3f}, tokens {tokens:.3f}"
        if largest:
            line += f", log-likelihoods within {max(largest):.1e}"
        lines.append(line)
    return lines


def agreed(result: dict[str, Any]) -> bool:
    """Are all answers equal in float32 on a CPU?"""
    exact = [row for row in result["cells"] if row["dtype"] == "float32"]
    return result["device"] != "cpu" or all(row["first"] is None for row in exact)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_benchmark(Options, "invariance", run, table, agreed, argv)


if __name__ == "__main__":
    sys.exit(main())
