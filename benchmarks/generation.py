"""Time of a decoding step, ours against the published loop, on random weights of a real shape.

The published loop is benchmarks/reference.py.

    python -m benchmarks.generation
        100M shape, one CPU thread; 8 minutes of it, 6 GB
    python -m benchmarks.generation --peer DIR [DIR ...]
        beside checkouts of LLaDA, Fast-dLLM or dllm; 2 minutes each a repetition
    python -m benchmarks.generation --shape 8b --device cuda
        LLaDA-8B's shape in bfloat16; the check in float32 needs 34 GB

A step in the middle of a generation is measured: the prompt and the blocks before the
active one are text, num_masked tokens of the active block and all blocks after it are
masked. `exact` is our sampler with the plain denoiser. It is compared twice: at
--temperature, where the published loop draws float64 Gumbel noise over the whole
sequence, and at temperature 0 (`_greedy`).

`prefix` and `dual` are the caches, which approximate: the mean step of a block in which
every step unmasks one token, so one `first` step, a forward of everything, to
block_length - 1 later ones (`prefix_later`, `dual_later`). `low_precision` and
`dual_low_precision` are `exact` and `dual` in bfloat16, `int8` and `dual_int8` with the
blocks' weights in 8 bits (where torchao is installed). `batch8` is a row's share of
such a step on eight rows, whose prompts have from half of prompt_length to all of it,
and `batch8_alone` the mean of the same rows one by one; both in bfloat16 as well. `ala`
is `exact` with a router of one layer before it, in a block's first step, which makes the seeds.
`ups_head` and `ups_head_512` add a policy head (128 and 512 hidden units) that nobody
asks: what the head costs. `ups` is RemeDi's sampler with the first of them: the head,
and logits at the block's visible tokens too, which its rule ranks.

"x exact" is the median over repetitions of the ratio to `exact` in the same repetition;
head and router are timed by themselves as well, since the ratio's noise is larger than
they are. All forms take turns in every repetition, so that a noisy machine slows all of
them; a ratio is one of medians, of CPU time on a CPU and of wall time on a GPU. Before
that the published loop and ours decode a short answer greedily, on the same weights in
float32: the exit status is 1 if tokens or numbers of forwards differ.

A peer (peers.py) decodes an answer of two blocks after a prompt that fills the same
canvas, in two steps a block or, with a cache, one token a step; ours decodes it right
after. Greedy answers must have the same tokens, or the exit status is 1. In bfloat16
peers rank positions by bfloat16 probabilities, many of which tie, and ours by float32:
tokens that differ there are told, and are a failure only if they differ in float32 too.
With --compile on, layers run compiled beside peers, and small steps are replayed on a GPU.
`dual_refresh2` is `dual` with a first step every second step. Floors (roofline.py) and
memory (memory.py) are of the measured step.

Weights are random, so accuracy is measured on the two tiny models that the package
ships (accuracy.py), greedily, in two blocks. Beside it stands the speed of an answer,
not of a step: what the published loop takes, with a forward for each token, over what
ours takes with the share of forwards that was needed on the tiny model, both at
temperature 0 ("answer x faster") and at --temperature ("sampled"). One token a forward,
that is the ratio of the form above. `threshold_0.95`, `factor_0.1` and
`error_budget_0.05` take steps of `exact`: its ratio times tokens over forwards.
`dual_threshold_0.9`, as Fast-dLLM is used, takes those of `dual`, and the fewer they
are, the larger a part of them are first steps.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llada_plugins import SamplerConfig, generate
from llada_plugins.models.folder import known_special_tokens
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.placement import pick_device, pick_dtype
from llada_plugins.reports.render import pyplot
from llada_plugins.tasks.registry import TASKS

from . import accuracy, memory, reference, roofline, speed_plot
from .clock import Clock, Seconds, clock_of, device_name, timed
from .command import run_benchmark
from .generation_options import Options
from .generation_peers import peer_agreement, peer_results
from .generation_tables import report
from .measured_step import head_seconds, middle_of_generation, on_a_copy, routing_seconds
from .random_models import SHAPES, model_config, random_model, random_tokens
from .steps import BATCHES, COMPOSED, FORMS, NUM_ROWS, ragged


def same_tokens(model: LLaDA, prompts: Tensor, config: SamplerConfig) -> bool:
    """Do both loops decode the same answers to prompts (B, P) with the same number of forwards?

    For temperature 0.
    """
    theirs = reference.generate(model, prompts, config, known_special_tokens(model).mask)
    ours = generate(model, prompts.tolist(), config)
    answers = theirs.tokens[:, prompts.shape[1] :].tolist()
    return [sample.answer for sample in ours] == answers and all(
        sample.num_forwards == theirs.num_forwards for sample in ours
    )


def measure(model: LLaDA, options: Options) -> dict[str, list[Seconds]]:
    """Seconds of every measured step of each form, sampled and `_greedy`.

    Batches are only sampled.
    """
    tokens, window = middle_of_generation(model, options)
    cases = {
        name: (step, options.sampler(options.temperature))
        for name, step in {**FORMS, **BATCHES}.items()
    }
    cases |= {f"{name}_greedy": (step, options.sampler(0.0)) for name, step in FORMS.items()}
    seconds: dict[str, list[Seconds]] = {name: [] for name in cases}
    for repetition in range(1 + options.steps_measured):
        for name, (step, config) in cases.items():
            work = partial(on_a_copy, step, model, tokens, window, config, options.num_masked)
            taken = timed(work, model.device)
            if repetition > 0:
                seconds[name].append(taken)
    return seconds


def composed(medians: dict[str, float], num_steps: float) -> dict[str, float]:
    """Seconds of the mean step of a row in a block of num_steps.

    Of each form as measured, of a cache the first step and the later ones.
    """
    mean = {name: seconds for name, seconds in medians.items() if name not in BATCHES}
    for name, (first, later) in COMPOSED.items():
        for suffix in ("", "_greedy"):
            if first + suffix in medians:
                rows = NUM_ROWS if first in BATCHES else 1
                mean[name + suffix] = (
                    (medians[first + suffix] + (num_steps - 1) * medians[later + suffix])
                    / num_steps
                    / rows
                )
    for suffix in ("", "_greedy"):
        if "dual" + suffix in mean:
            mean["dual_refresh2" + suffix] = (
                medians["first" + suffix] + medians["dual_later" + suffix]
            ) / 2
    return mean


def judged(medians: dict[str, float], options: Options) -> dict[str, dict[str, dict[str, float]]]:
    """Accuracies by task and way of decoding, each with the speed of such an answer.

    The speed is over the published loop's, sampled and greedy.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for task, ways in accuracy.measure(options.accuracy_puzzles).items():
        found[task] = {}
        for name, each in ways.items():
            share = each.mean_forwards / TASKS[task].answer_length  # of a forward for each token
            mean = composed(medians, share * options.block_length)
            found[task][name] = {
                **each._asdict(),
                **{
                    f"times_faster{suffix}": medians[f"reference{suffix}"]
                    / (share * mean[f"{accuracy.WAYS[name].step}{suffix}"])
                    for suffix in ("", "_greedy")
                },
            }
    return found


def times_exact(seconds: dict[str, list[Seconds]], clock: Clock) -> dict[str, float]:
    """Each wrapped form's time over that of `exact` in the same repetition, the median."""
    return {
        name: statistics.median(
            getattr(ours, clock) / getattr(exact, clock)
            for ours, exact in zip(
                taken, seconds["exact_greedy" if name.endswith("_greedy") else "exact"]
            )
        )
        for name, taken in seconds.items()
        if name.startswith(("ups", "ala"))
    }


def floors(model: LLaDA, options: Options, names: Sequence[str], clock: Clock) -> dict[str, Any]:
    """Ceilings of the machine, and floors of the forms in seconds.

    Beside them, the part of exact steps outside matrix products.
    """
    tokens, window = middle_of_generation(model, options)
    ceilings = {
        dtype.itemsize: roofline.measured_ceiling(model.device, dtype, clock)
        for dtype in (model.dtype, torch.bfloat16)
    }
    place = roofline.Place(tokens.shape[1], window.start, options.block_length, options.num_masked)
    each = roofline.step_floors(
        model.config,
        names,
        place,
        ragged(tokens, options.sampler(0)),
        model.dtype.itemsize,
        ceilings,
    )
    configs = {"exact": options.sampler(options.temperature), "exact_greedy": options.sampler(0.0)}
    overhead = {}
    for name, config in configs.items():
        step = partial(on_a_copy, FORMS["exact"], model, tokens, window, config, options.num_masked)
        overhead[name] = 1 - roofline.profiled(step, model.device).product_share
    return {
        "ceilings": {size: ceiling._asdict() for size, ceiling in ceilings.items()},
        "seconds": composed(each, options.block_length),
        "overhead": overhead,
    }


def memory_growth(model: LLaDA, options: Options) -> memory.Growth:
    """Peaks of the exact step as the canvas grows; half of it is the prompt."""

    def step(length: int) -> Callable[[], None]:
        longer = replace(options, prompt_length=length // 2, gen_length=length // 2)
        tokens, window = middle_of_generation(model, longer)
        return lambda: FORMS["exact"](
            model, tokens.clone(), window, longer.sampler(options.temperature), options.num_masked
        )

    return memory.growth(
        step, [options.memory_length >> shift for shift in range(4, -1, -1)], model.device
    )


def run(options: Options) -> dict[str, Any]:
    """The whole benchmark; its result can be written as JSON."""
    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device)
    length = max(
        options.prompt_length + options.gen_length, 2 * options.check_length, options.memory_length
    )
    model = random_model(model_config(options.shape, length), device, options.seed)
    check = SamplerConfig(gen_length=options.check_length, block_length=options.check_length // 2)
    same = same_tokens(model, random_tokens(model, options.check_length, options.seed), check)
    exactly = peer_agreement(model, options) if dtype != torch.float32 else {}
    seconds = measure(model.to(dtype), options)
    clock = clock_of(device)
    medians = {name: median(taken, clock) for name, taken in seconds.items()}
    mean = composed(medians, options.block_length)
    return {
        "ratios": ratios(mean),
        **peer_results(model, options, clock, exactly),
        "times_exact": times_exact(seconds, clock),
        **addon_shares(model, options, medians["exact"], clock),
        "same_tokens": same,
        "seconds": mean,
        "floor": floors(model, options, list(medians), clock),
        "memory": memory_growth(model, options)._asdict() if options.memory_length else None,
        "accuracy": judged(medians, options),
        "clock": clock,
        "every_step": {name: [each._asdict() for each in taken] for name, taken in seconds.items()},
        "shape": {"name": options.shape, **SHAPES[options.shape]},
        "machine": {
            "device": device_name(device),
            "dtype": str(dtype).removeprefix("torch."),
            "torch": torch.__version__,
        },
        "options": asdict(options),
    }


def median(taken: Sequence[Seconds], clock: Clock) -> float:
    """Of some repetitions, by one clock."""
    return statistics.median(getattr(each, clock) for each in taken)


def baseline(name: str) -> str:
    """The form of the published loop that a form is compared with."""
    return "reference_greedy" if name.endswith("_greedy") else "reference"


def ratios(mean: dict[str, float]) -> dict[str, float]:
    """How many times faster than the published loop every other form is."""
    return {
        name: mean[baseline(name)] / each for name, each in mean.items() if name != baseline(name)
    }


def addon_shares(model: LLaDA, options: Options, exact: float, clock: Clock) -> dict[str, Any]:
    """What heads and a router take by themselves, as shares of an exact step's seconds."""
    heads = {width: head_seconds(model, options.block_length, width) for width in (128, 512)}
    router = routing_seconds(model, options)
    return {
        "head_share": {str(width): getattr(each, clock) / exact for width, each in heads.items()},
        "router_share": getattr(router, clock) / exact,
    }


def run_and_draw(options: Options) -> dict[str, Any]:
    """Measure, and draw where a plot is asked for; what drawing lacks is said first."""
    if options.plot:
        pyplot()
    result = run(options)
    if options.plot:
        speed_plot.draw(result, Path(options.plot))
    return result


def all_agree(result: dict[str, Any]) -> bool:
    """Did ours, the published loop and every peer decode the same greedy tokens?

    What differs in less than float32 alone is no failure: peers rank there in that
    precision, where probabilities tie, and ours in float32.
    """
    return result["same_tokens"] and not any(
        found.get("same_in_float32", found.get("same_tokens")) is False
        for found in result["peer_runs"].values()
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_benchmark(Options, "generation", run_and_draw, report, all_agree, argv)


if __name__ == "__main__":
    sys.exit(main())
