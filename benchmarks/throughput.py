"""Tokens a second of many requests: one by one, in batches, in batches that stay full.

The last are llada_plugins/sampling/batching.py's.

    python -m benchmarks.throughput
        100M shape, dual cache, one CPU thread; 4 minutes, 3 GB
    python -m benchmarks.throughput --shape tiny
        a model whose steps cost more in calls than in arithmetic
    python -m benchmarks.throughput --shape 8b --device cuda
        LLaDA-8B's shape in bfloat16
    python -m benchmarks.throughput --attention block_causal --shape 40m-gqa --threads 2
            --num_prompts 8 --gen_length 512 --ends False
        a block-causal model with its exact cache, beside the published loop

Prompts have from half of prompt_length to all of it. After every block an answer ends
by chance, decided by its tokens, so that the three ways decode the same answers; the
exit status is 1 if they do not (in float32). `batches` decodes batch_size prompts of
like length until all have ended; `full` gives the place of each that ends to one that
waits. `published`, of block-causal models, is LLaDA2's loop: one row, every step a forward
of all that stands up to the block's end; it decodes the first published_prompts of them.
`rows` is the mean number of rows of a forward. Seconds are CPU time on a CPU and
wall time on a GPU; the ways take turns, and a ratio is one of medians.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch

from llada_plugins import SamplerConfig
from llada_plugins.diffusion.batch_limit import BatchLimit
from llada_plugins.diffusion.denoiser import Canvas, Denoiser, Prediction, capacity, model_denoiser
from llada_plugins.diffusion.random_streams import request_key
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.placement import pick_device, pick_dtype
from llada_plugins.options.fields import arg
from llada_plugins.sampling.decode import decode
from llada_plugins.sampling.draft import Sample
from llada_plugins.sampling.for_model import check_attention
from llada_plugins.sampling.generate import with_options

from .clock import clock_of, device_name, timed
from .command import check_counts, check_folder, run_benchmark
from .random_models import SHAPES, model_config, random_model, random_tokens
from .reference import generate_block_causal


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured, and where."""

    shape: Literal["tiny", "40m-gqa", "100m", "8b"] = arg(
        "100m",
        "width and depth of the model: tiny, 40m-gqa (57 M parameters with embeddings, grouped "
        "queries), 100m (279 M) or 8b (LLaDA-8B)",
    )
    attention: Literal["full", "block_causal"] = arg(
        "full", "what a token sees: all others, or its own block and those before"
    )
    device: str = arg("cpu", "auto (a GPU if there is one), cpu, cuda or cuda:N")
    dtype: str = arg(
        "auto",
        "of the forwards: auto (bfloat16 on a GPU, else float32), float32, bfloat16 or float16",
    )
    threads: int = arg(1, "CPU threads; one is steadiest on a shared machine")
    num_prompts: int = arg(16, "requests")
    batch_size: int = arg(8, "rows decoded together")
    prompt_length: int = arg(128, "longest prompt in tokens")
    gen_length: int = arg(128, "longest answer in tokens")
    block_length: int = arg(32, "tokens of a block")
    steps_per_block: int = arg(8, "denoising steps of a block")
    cache: Literal["none", "auto", "prefix", "dual"] | None = arg(
        None, "which cache (default: dual, or auto of a block-causal model)"
    )
    ends: bool = arg(True, "answers end by chance; else all have gen_length tokens")
    published_prompts: int = arg(1, "requests that the published loop decodes; 0 = leave it out")
    repetitions: int = arg(2, "how often each way decodes all requests")
    seed: int = arg(0, "of weights and tokens")
    json: str | None = arg(None, "file for the results as JSON")

    def __post_init__(self) -> None:
        check_counts(self, "threads", "num_prompts", "batch_size", "prompt_length", "repetitions")
        check_folder("json", self.json)
        pick_dtype(self.dtype, pick_device(self.device))
        self.check_sampler()

    def check_sampler(self) -> None:
        """Raise ValueError on options that the model's attention does not allow."""
        length = self.prompt_length + self.gen_length
        check_attention(self.sampler(), model_config(self.shape, length, self.width))

    def sampler(self) -> SamplerConfig:
        """How every request is decoded."""
        lengths: dict[str, Any] = dict(gen_length=self.gen_length, block_length=self.block_length)
        if self.attention == "block_causal":
            return SamplerConfig(
                **lengths,
                sampling_method="block_causal",
                block_steps=self.steps_per_block,
                cache=self.cache or "auto",
            )
        num_blocks = max(1, self.gen_length // self.block_length)
        return SamplerConfig(
            **lengths, steps=num_blocks * self.steps_per_block, cache=self.cache or "dual"
        )

    @property
    def width(self) -> int | None:
        """Tokens of a block of the model's attention, if it has such."""
        return self.block_length if self.attention == "block_causal" else None


def prompts_of(model: LLaDA, options: Options) -> list[list[int]]:
    """Random prompts, the longest first: from prompt_length down to half of it.

    Of a block-causal model they are whole blocks, as the published loop is written for.
    """
    width = options.width or 1
    lengths = [
        options.prompt_length - n * options.prompt_length // (2 * options.num_prompts)
        for n in range(options.num_prompts)
    ]
    lengths = [max(width, length // width * width) for length in lengths]
    return [
        random_tokens(model, length, options.seed + n)[0].tolist()
        for n, length in enumerate(lengths)
    ]


def counted(denoise: Denoiser, sizes: list[int]) -> Denoiser:
    """The same denoiser; sizes collects the rows of each forward."""

    def denoise_counted(canvas: Canvas, window: slice) -> Prediction:
        sizes.append(len(canvas.tokens))
        return denoise(canvas, window)

    return denoise_counted


def ways(
    denoise: Denoiser, model: LLaDA, prompts: Sequence[list[int]], options: Options
) -> dict[str, Callable[[], list[list[int]]]]:
    """What is compared: each decodes all prompts, the published loop the first of them."""
    special = model.special_tokens
    assert special is not None
    config = options.sampler()

    def stop(answer: list[int]) -> bool:
        return options.ends and request_key(options.seed, answer) % config.num_blocks == 0

    def work(some: Sequence[list[int]], size: int) -> list[Sample]:
        return decode(
            with_options(denoise, config, special),
            some,
            config,
            special,
            device=model.device,
            stop=stop,
            at_once=BatchLimit(capacity(size)),
        )

    def batches() -> Iterator[Sample]:
        for first in range(0, len(prompts), options.batch_size):
            yield from work(prompts[first : first + options.batch_size], options.batch_size)

    def published() -> list[list[int]]:
        some = prompts[: options.published_prompts]
        return [generate_block_causal(model, each, config, special.mask, stop) for each in some]

    def answers(samples: Iterable[Sample]) -> list[list[int]]:
        return [sample.answer for sample in samples]

    found: dict[str, Callable[[], list[list[int]]]] = {
        "one_by_one": lambda: answers(work(prompts, 1)),
        "batches": lambda: answers(batches()),
        "full": lambda: answers(work(prompts, options.batch_size)),
    }
    if options.width is not None and options.published_prompts:
        found["published"] = published
    return found


def run(options: Options) -> dict[str, Any]:
    """The whole benchmark; its result can be written as JSON."""
    device = pick_device(options.device)
    model = random_model(
        model_config(options.shape, options.prompt_length + options.gen_length, options.width),
        device,
        options.seed,
    )
    model.to(pick_dtype(options.dtype, device))
    prompts = prompts_of(model, options)
    clock = clock_of(device)
    sizes: list[int] = []
    each = ways(counted(model_denoiser(model), sizes), model, prompts, options)
    each["full"]()  # the first forwards are slower
    seconds: dict[str, list[float]] = {name: [] for name in each}
    rows, answers = {}, {}

    def decode_all(name: str) -> None:
        answers[name] = each[name]()

    for _ in range(options.repetitions):
        for name in each:
            sizes.clear()
            seconds[name].append(getattr(timed(partial(decode_all, name), device), clock))
            rows[name] = statistics.mean(sizes or [1])
    num_tokens = {name: sum(map(len, found)) for name, found in answers.items()}
    rates = {name: num_tokens[name] / statistics.median(taken) for name, taken in seconds.items()}
    slowest = "published" if "published" in rates else "one_by_one"
    return {
        "ratios": {name: rate / rates[slowest] for name, rate in rates.items()},
        "ratios_to": slowest,
        "tokens_per_second": rates,
        "rows": rows,
        "num_tokens": num_tokens["full"],
        "seconds": seconds,
        "clock": clock,
        "same_answers": all(found == answers["full"][: len(found)] for found in answers.values())
        if model.dtype == torch.float32
        else None,
        "shape": {"name": options.shape, **SHAPES[options.shape]},
        "machine": {
            "device": device_name(device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "torch": torch.__version__,
        },
        "options": asdict(options),
    }


def table(result: dict[str, Any]) -> str:
    """Rates and ratios as text."""
    machine = result["machine"]
    lines = [
        f"{result['shape']['name']}, {machine['dtype']}, {machine['device']}: "
        f"{result['num_tokens']} tokens, {result['clock']} time",
        f"{'':<14}{'tokens/s':>10}{'rows':>8}{'x ' + result['ratios_to']:>14}",
    ]
    for name, rate in result["tokens_per_second"].items():
        lines.append(
            f"{name:<14}{rate:>10.1f}{result['rows'][name]:>8.2f}{result['ratios'][name]:>14.2f}"
        )
    words = {True: "yes", False: "NO", None: "not compared"}
    lines.append(f"same answers: {words[result['same_answers']]}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_benchmark(
        Options, "throughput", run, table, lambda result: result["same_answers"] is not False, argv
    )


if __name__ == "__main__":
    sys.exit(main())
