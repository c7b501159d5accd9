"""What a GPU makes of LLaDA-8B's shape: every measurement of speed in one run of 8 minutes at most.

    python -m benchmarks.gpu --json gpu.json --plot gpu.png
        one GPU of 40 GB or more; bfloat16
    python -m benchmarks.gpu --shape tiny --device cpu --prompt_length 32 --gen_length 32 \\
            --block_length 8 --num_masked 4 --rows 1 2 --sections steps published
        to try the command without one; kernels are operators then

Weights and tokens are random, so nothing here is about accuracy. Sections, in the order
of their use; one that would begin after --seconds is left out, and one that fails, as for
want of memory, ends no other. The table says so:

`steps`      a step of each form and number of rows on the canvas of a 5-shot prompt: median
             time, its ratio to the floor (roofline.py) that the ceilings of the same
             process set, kernels a step, and the share of the time in which none ran. A
             cache's later steps are several of one block, each right after the other, as
             in a decode; what a block begins with is shared by them.
`compiled`   the same with compiled layers, where torch.compile works.
`published`  a step of the published loop over ours, greedy and sampled, eager and
             compiled, and whether greedy answers have the same tokens. In bfloat16 that
             loop ranks by bfloat16 probabilities, many of which tie: a difference there is
             told, and fails only in float32.
`answers`    tokens and forwards a second of whole answers with the dual cache.
`compiled_answers`  the same with compiled layers, and small forwards as CUDA graphs.
`block_causal` a later step of block-causal models with grouped queries and exact keys and
             values of finished blocks (gpu_block_causal.py), eager and compiled.
`likelihood` masked rows a second, over those of the published loop, which takes 8 at once.
`quantised`  steps with 8-bit products (int8_dynamic, fp8), layers compiled where that works;
             the floor is the one of the weights as they are.
`training`   tokens a second of LoRA and of Remask SFT, and the share of the ceiling; layers
             are compiled where that works.

Times are between two events on the GPU (of a CPU, its own time). Not here: peers, see
benchmarks.generation --peer, and what the trainer adds to an update, see
benchmarks.training.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llada_plugins import SamplerConfig, generate, log_likelihood
from llada_plugins.diffusion.denoiser import model_denoiser
from llada_plugins.files.json_files import first_line
from llada_plugins.models.compiling import lacking
from llada_plugins.models.folder import known_special_tokens
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.placement import pick_device, pick_dtype
from llada_plugins.models.quantization import check_quantize
from llada_plugins.models.scaled_linear import check_device
from llada_plugins.reports.render import pyplot
from training.loop.trainer import compile_layers

from . import gpu_training, reference, roofline
from .clock import clock_of, device_name, timed
from .command import run_benchmark
from .gpu_bench import Bench
from .gpu_block_causal import block_causal
from .gpu_options import ORDER, Options
from .gpu_report import draw, table
from .gpu_steps import canvas_in_work, compiled, measured_step, steps
from .random_models import SHAPES, model_config, random_model, random_tokens
from .steps import our_step, quantised_copy, reference_step

EIGHT_BITS = ("int8_dynamic", "fp8")  # methods whose products take less time than bfloat16's
TEMPERATURE = 0.7
REQUEST = (48, 24)  # tokens of a likelihood's prompt and answer


def published(bench: Bench) -> dict[str, Any]:
    """A step of the published loop over ours, and which greedy tokens agree."""
    temperatures = {"greedy": 0.0, "sampled": TEMPERATURE}
    return {
        "ratios": {
            f"{name}, {how}": ratio
            for name, each in temperatures.items()
            for how, ratio in times_published(bench, each).items()
        },
        "same_share": same_share(bench.model, bench.options),
        "same_in_float32": bench.same_in_float32,
    }


def times_published(bench: Bench, temperature: float) -> dict[str, float]:
    """How many times the published loop's speed a step of ours has, eager and compiled.

    That loop is always eager.
    """
    model, config = bench.model, bench.options.sampler(temperature=temperature)
    tokens, window = canvas_in_work(model, bench.options, 1)
    denoise, num_masked = model_denoiser(model), bench.options.num_masked

    def theirs() -> None:
        reference_step(model, tokens.clone(), window, config, num_masked)

    def ours() -> None:
        our_step(denoise, model, tokens.clone(), window, config)

    published = bench.median(theirs)
    return {how: published / taken for how, taken in bench.both_ways(ours).items()}


def same_share(model: LLaDA, options: Options) -> float:
    """The share of a short greedy answer's tokens that ours and the published loop have alike."""
    config = SamplerConfig(gen_length=options.block_length)
    prompt = random_tokens(model, options.block_length, options.seed)
    assert model.special_tokens is not None  # of a random model
    theirs = reference.generate(model, prompt, config, known_special_tokens(model).mask)
    [ours] = generate(model, prompt.tolist(), config)
    answer = theirs.tokens[0, prompt.shape[1] :].tolist()
    return sum(map(int.__eq__, ours.answer, answer)) / len(answer)


def answers(bench: Bench) -> dict[str, Any]:
    """Tokens and forwards a second of answers in 8 steps a block, by their number."""
    options, found = bench.options, {}
    per_block = min(8, options.block_length)
    num_steps = options.gen_length // options.block_length * per_block
    config = options.sampler(steps=num_steps, cache="dual")
    for rows in options.rows:
        tokens, _ = canvas_in_work(bench.model, options, rows)
        prompts = tokens[:, : options.prompt_length].tolist()
        work = partial(generate, bench.model, prompts, config)
        work()
        taken = getattr(timed(work, bench.model.device), bench.clock)
        found[str(rows)] = {
            "tokens_per_second": rows * options.gen_length / taken,
            "forwards_per_second": num_steps / taken,
        }
    return found


def likelihood(bench: Bench) -> dict[str, float]:
    """Masked rows a second of ours and of the published loop."""
    model, (prompt, answer), mc_num = bench.model, REQUEST, 32
    tokens = random_tokens(model, prompt + answer, bench.options.seed)[0]
    pairs = [(tokens[:prompt].tolist(), tokens[prompt:].tolist())] * 8
    assert model.special_tokens is not None  # of a random model
    mask_id = known_special_tokens(model).mask

    def theirs() -> None:
        for _ in pairs:
            reference.log_likelihood(model, tokens[:prompt], tokens[prompt:], mask_id, mc_num, 8)

    rows = len(pairs) * mc_num
    ours = partial(log_likelihood, model, pairs, mc_num=mc_num, batch_size=64)
    seconds = {"published": bench.median(theirs), **bench.both_ways(ours)}
    return {name: rows / taken for name, taken in seconds.items()}


def quantised(bench: Bench) -> dict[str, Any]:
    """Steps with 8-bit products, by method; the reason where the device has none."""
    return bench.each_in_time(EIGHT_BITS, partial(quantised_steps, bench))


def quantised_steps(bench: Bench, method: str) -> dict[str, Any]:
    """An exact and a later step, with the fewest and the most rows."""
    model, rows = bench.model, bench.options.rows
    try:
        check_quantize(method)
        check_device(method, model.device, model.dtype)
    except (ImportError, ValueError) as error:
        return {"lack": str(error)}
    copied = quantised_copy(model, method)
    if model.device.type == "cuda" and not lacking(model.device):
        copied.compile_layers("on")  # eager, rounding is several small kernels a Linear
    of_copy = bench._replace(model=copied)
    return {
        f"{form} {number}": measured_step(of_copy, form, number)
        for form in ("exact", "dual_later")
        for number in sorted({min(rows), max(rows)})
    }


def training(bench: Bench) -> dict[str, Any]:
    """Tokens a second of an update of each kind, and the share of the ceiling."""
    return bench.each_in_time(gpu_training.WORKS, partial(trained, bench))


def trained(bench: Bench, kind: str) -> dict[str, float]:
    """The rates of one kind of training."""
    model, options = bench.model, bench.options
    columns = min(gpu_training.MOST_COLUMNS, options.prompt_length + options.gen_length)
    work = gpu_training.WORKS[kind](model, columns)
    batch = gpu_training.batch_of(model, columns, options.seed)
    if not lacking(model.device):
        compile_layers(work.model)
    seconds = bench.median(gpu_training.updates(work, batch, model.dtype))
    return gpu_training.rates(seconds, columns, work.flops, bench.ceiling.flops)


def compiled_answers(bench: Bench) -> dict[str, Any]:
    """`answers` with compiled layers; those that are not measured compile and capture."""
    return bench.when_compiled(partial(answers, bench))


SECTIONS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "steps": steps,
    "published": published,
    "answers": answers,
    "likelihood": likelihood,
    "compiled": compiled,
    "compiled_answers": compiled_answers,
    "block_causal": block_causal,
    "quantised": quantised,
    "training": training,
}


def run(options: Options) -> dict[str, Any]:
    """Every section that there is time for; the result can be written as JSON."""
    began = time.monotonic()
    device = pick_device(options.device)
    dtype, clock = pick_dtype(options.dtype, device), clock_of(device)
    length = max(options.prompt_length + options.gen_length, sum(REQUEST))
    model = random_model(model_config(options.shape, length), device, options.seed)
    same = same_share(model, options) == 1
    model.to(dtype)
    ceiling = roofline.measured_ceiling(device, dtype, clock)
    bench = Bench(model, options, ceiling, clock, same, began + options.seconds)
    found: dict[str, Any] = {}
    failed: dict[str, str] = {}
    seconds: dict[str, float] = {}
    asked = [name for name in ORDER if name in options.sections]
    for name in asked:
        if (at := time.monotonic()) < bench.deadline:
            # what was measured before is not to be lost
            try:
                found[name] = SECTIONS[name](bench)
            except RuntimeError as error:
                failed[name] = first_line(error)
            seconds[name] = time.monotonic() - at
    return {
        "sections": found,
        "failed": failed,
        "not_run": [name for name in asked if name not in found and name not in failed],
        "same_tokens": same,
        "ceiling": ceiling._asdict(),
        "total_seconds": time.monotonic() - began,
        "section_seconds": seconds,  # compiling and what is not measured included
        "shape": {"name": options.shape, **SHAPES[options.shape]},
        "machine": {
            "device": device_name(device),
            "dtype": str(dtype).removeprefix("torch."),
            "clock": clock,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
        },
        "options": asdict(options),
    }


def run_and_draw(options: Options) -> dict[str, Any]:
    """Measure, and draw where a plot is asked for; what drawing lacks is said first."""
    if options.plot:
        pyplot()
    result = run(options)
    if options.plot:
        draw(result, Path(options.plot))
    return result


def succeeded(result: dict[str, Any]) -> bool:
    """Did every section that began end, and float32 answers have the same tokens?"""
    return bool(result["same_tokens"]) and not result["failed"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_benchmark(Options, "gpu", run_and_draw, table, succeeded, argv)


if __name__ == "__main__":
    sys.exit(main())
