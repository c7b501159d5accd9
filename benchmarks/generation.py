"""Time of a decoding step, ours against the published loop (benchmarks/reference.py),
on random weights of a real shape.

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
is `exact` behind a router of one layer, in a block's first step, which makes the seeds.
`ups_head` and `ups_head_512` add a policy head (128 and 512 hidden units) that nobody
asks: what the head costs. `ups` is RemeDi's sampler with the first of them: the head,
and logits at the block's visible tokens too, which its rule ranks.

"x exact" is the median over repetitions of the ratio to `exact` in the same repetition;
head and router are timed by themselves as well, since the ratio's noise is larger than
they are. All forms take turns in every repetition, so that a noisy machine slows all of
them; a ratio is one of medians, of CPU time on a CPU and of wall time on a GPU. Before
that the published loop and ours decode a short answer greedily, on the same weights in
float32: the exit status is 1 if tokens or numbers of forwards differ.

A peer (peers.py) decodes an answer of two blocks behind a prompt that fills the same
canvas, in two steps a block or, with a cache, one token a step; ours decodes it right
after. Greedy answers must have the same tokens, or the exit status is 1.
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

import dataclasses
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from llada_plugins import SamplerConfig, SpecialTokens, generate
from llada_plugins.methods.routing import seeded_embeddings
from llada_plugins.models.llada import LLaDA, initialise
from llada_plugins.models.llada_config import LLaDAConfig
from llada_plugins.models.placement import pick_device, pick_dtype
from llada_plugins.options.fields import arg
from llada_plugins.reports.render import pyplot
from llada_plugins.tasks.registry import TASKS

from . import accuracy, memory, peers, reference, roofline, speed_plot
from .clock import Seconds, timed
from .command import check_folder, run_benchmark
from .steps import BATCHES, COMPOSED, FORMS, NUM_ROWS, ragged, random_head, random_router

DENSE: dict[str, Any] = dict(vocab_size=157_184, qk_norm=True)
MOE: dict[str, Any] = dict(**DENSE, num_experts=64, experts_per_token=8)
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": dict(d_model=32, n_layers=2, n_heads=2, mlp_hidden_size=64, vocab_size=101),
    "100m": dict(d_model=768, n_layers=12, n_heads=12, mlp_hidden_size=2048, vocab_size=126_464),
    "8b": dict(d_model=4096, n_layers=32, n_heads=32, mlp_hidden_size=12_288, vocab_size=126_464),
    # LLaDA-MoE's; NAME-active is dense, with as many weights as a token of it meets
    "7b-moe": dict(d_model=2048, n_layers=16, n_heads=16, mlp_hidden_size=1024, **MOE),
    "7b-moe-active": dict(d_model=2048, n_layers=16, n_heads=16, mlp_hidden_size=8192, **DENSE),
    "300m-moe": dict(d_model=768, n_layers=12, n_heads=12, mlp_hidden_size=128, **MOE),
    "300m-moe-active": dict(d_model=768, n_layers=12, n_heads=12, mlp_hidden_size=1024, **DENSE),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured, and where."""

    shape: Literal["tiny", "100m", "8b"] = arg(
        "100m",
        "width and depth of the model: tiny (to try the command), 100m (279 M parameters with "
        "embeddings) or 8b (LLaDA-8B)",
    )
    device: str = arg("cpu", "auto (a GPU if there is one), cpu, cuda or cuda:N")
    dtype: str = arg(
        "auto",
        "of the measured steps: auto (bfloat16 on a GPU, else float32), float32, bfloat16 or "
        "float16",
    )
    threads: int = arg(1, "CPU threads; one is steadiest on a shared machine")
    prompt_length: int = arg(256, "prompt in tokens")
    gen_length: int = arg(256, "answer in tokens")
    block_length: int = arg(32, "tokens of a block")
    num_masked: int = arg(
        16, "masked tokens left in the active block, the middle one of the answer"
    )
    temperature: float = arg(0.7, "of the sampled forms")
    steps_measured: int = arg(5, "steps measured of each form, after one that is not")
    check_length: int = arg(
        32,
        "tokens of the answer, and of its prompt, that both loops decode greedily for comparison; "
        "even",
    )
    seed: int = arg(0, "of weights and tokens")
    peer: list[str] = dataclasses.field(
        default_factory=list,
        metadata={"help": "checkouts of LLaDA, Fast-dLLM or dllm to run beside ours"},
    )
    peer_repetitions: int = arg(3, "answers decoded by each loop of a peer, and by ours")
    memory_length: int = arg(
        4096,
        "columns of the longest canvas whose step's memory is measured, the shortest has a 16th; "
        "0: none",
    )
    accuracy_puzzles: int = arg(
        200,
        "sudoku puzzles, and as many Nim positions, on which the approximations' accuracy is "
        "measured; 0: none",
    )
    json: str | None = arg(None, "file for the results as JSON")
    plot: str | None = arg(
        None, "file for a plot of speeds, floors and memory (.png, .pdf or .svg)"
    )

    def __post_init__(self) -> None:
        for name in ("threads", "prompt_length", "steps_measured", "peer_repetitions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 1 <= self.num_masked <= self.block_length:
            raise ValueError(
                f"num_masked must be from 1 to block_length ({self.block_length}), got "
                f"{self.num_masked}"
            )
        if self.temperature <= 0:
            raise ValueError(
                f"temperature must be above 0, got {self.temperature}: temperature 0 is measured "
                "beside it anyway"
            )
        if self.check_length < 2 or self.check_length % 2:
            raise ValueError(f"check_length must be even and at least 2, got {self.check_length}")
        for name in ("json", "plot"):
            check_folder(name, getattr(self, name))
        speed_plot.check_suffix(self.plot)
        if self.memory_length < 0 or self.memory_length % (32 * self.block_length):
            raise ValueError(
                f"memory_length must be 0 or a multiple of 32 blocks ({32 * self.block_length}), "
                f"got {self.memory_length}"
            )
        if not 0 <= self.accuracy_puzzles <= accuracy.most_problems():
            raise ValueError(
                f"accuracy_puzzles must be from 0 to {accuracy.most_problems()}, the Nim "
                "positions that there are, "
                f"got {self.accuracy_puzzles}"
            )
        if (
            self.peer
            and self.prompt_length + self.gen_length <= peers.NUM_BLOCKS * self.block_length
        ):
            raise ValueError(
                f"peers decode {peers.NUM_BLOCKS} blocks behind a prompt: prompt_length + "
                "gen_length must exceed "
                f"{peers.NUM_BLOCKS * self.block_length}"
            )
        for folder in self.peer:
            peers.kind(Path(folder))
        if self.gen_length % self.block_length:  # peers decode whole blocks only
            raise ValueError(
                f"gen_length ({self.gen_length}) must be a multiple of block_length "
                f"({self.block_length})"
            )
        self.sampler(0)
        pick_dtype(self.dtype, pick_device(self.device))

    def sampler(self, temperature: float) -> SamplerConfig:
        """The measured step: one for the whole block, since what a step costs does not
        depend on how many tokens it keeps.
        """
        num_blocks = max(1, self.gen_length // self.block_length)
        return SamplerConfig(
            gen_length=self.gen_length,
            block_length=self.block_length,
            steps=num_blocks,
            temperature=temperature,
        )


def model_config(shape: str, length: int) -> LLaDAConfig:
    """A model of the shape for sequences up to `length`; its last id is the mask."""
    return LLaDAConfig(
        **SHAPES[shape],
        max_sequence_length=length,
        rope_theta=5e5,
        rms_norm_eps=1e-5,
        weight_tying=False,
        include_bias=False,
        include_qkv_bias=False,
        rope_full_precision=True,
        mask_token_id=SHAPES[shape]["vocab_size"] - 1,
    )


def random_model(config: LLaDAConfig, device: torch.device, seed: int) -> LLaDA:
    """Random float32 weights, ready for inference."""
    with torch.device("meta"):
        model = LLaDA(config)
    model.to_empty(device=device)
    initialise(model, torch.Generator(device).manual_seed(seed))
    # no trained head proposes the mask; ours rules it out, the published loop does not
    with torch.no_grad():
        model.model["transformer"]["ff_out"].weight[config.mask_token_id] = 0
    model.special_tokens = SpecialTokens(config.mask_token_id)
    return model.eval().requires_grad_(False)


def random_tokens(model: LLaDA, length: int, seed: int) -> Tensor:
    """(1, length) ids without the mask."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.mask_token_id, (1, length), generator=generator).to(
        model.device
    )


def same_tokens(model: LLaDA, prompts: Tensor, config: SamplerConfig) -> bool:
    """Do both loops decode the same answers to prompts (B, P) with the same number of
    forwards? For temperature 0.
    """
    theirs = reference.generate(model, prompts, config, model.special_tokens.mask)
    ours = generate(model, prompts.tolist(), config)
    answers = theirs.tokens[:, prompts.shape[1] :].tolist()
    return [sample.answer for sample in ours] == answers and all(
        sample.num_forwards == theirs.num_forwards for sample in ours
    )


def middle_of_generation(model: LLaDA, options: Options) -> tuple[Tensor, slice]:
    """Tokens (1, L) as the step finds them, and the active block's columns."""
    tokens = random_tokens(model, options.prompt_length + options.gen_length, options.seed)
    first = (
        options.prompt_length
        + options.gen_length // options.block_length // 2 * options.block_length
    )
    window = slice(first, first + options.block_length)
    order = torch.randperm(
        options.block_length, generator=torch.Generator().manual_seed(options.seed)
    ).to(model.device)
    tokens[:, first + order[: options.num_masked]] = model.special_tokens.mask
    tokens[:, window.stop :] = model.special_tokens.mask
    return tokens, window


def on_a_copy(step: Callable[..., None], model: LLaDA, tokens: Tensor, *rest: Any) -> None:
    """A step on a copy of the tokens: it writes into what it is given."""
    step(model, tokens.clone(), *rest)


def measure(model: LLaDA, options: Options) -> dict[str, list[Seconds]]:
    """Seconds of every measured step of each form, sampled and `_greedy`; of batches
    sampled alone.
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


@torch.inference_mode()
def head_seconds(model: LLaDA, block_length: int, width: int, repetitions: int = 100) -> Seconds:
    """What a policy head alone takes on one block's hidden states."""
    head = random_head(model.config.d_model, width, model.device)
    hidden = torch.ones(
        1, block_length, model.config.d_model, dtype=model.dtype, device=model.device
    )
    head(hidden)  # the first call is slower
    taken = timed(lambda: [head(hidden) for _ in range(repetitions)], model.device)
    return Seconds(*(each / repetitions for each in taken))


@torch.inference_mode()
def routing_seconds(model: LLaDA, options: Options, repetitions: int = 20) -> Seconds:
    """What the router adds to the measured step: seeds in place of the tokens' own embeddings."""
    router, (tokens, _) = (
        random_router(model.config.d_model, model.config.n_heads, model.device),
        middle_of_generation(model, options),
    )
    start = tokens.new_full((1,), options.prompt_length)

    def work() -> None:
        for _ in range(repetitions):
            seeded_embeddings(router, model.embedding, tokens, start, model.special_tokens.mask)

    work()  # the first call is slower
    return Seconds(*(each / repetitions for each in timed(work, model.device)))


def composed(medians: dict[str, float], num_steps: float) -> dict[str, float]:
    """Seconds of the mean step of a row in a block of num_steps: of each form as
    measured, of a cache the first step and the later ones.
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
    """Accuracies by task and way of decoding, each with the speed of such an answer
    over the published loop's, sampled and greedy.
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


def times_exact(seconds: dict[str, list[Seconds]], clock: str) -> dict[str, float]:
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


def floors(model: LLaDA, options: Options, names: Sequence[str], clock: str) -> dict[str, Any]:
    """Ceilings of the machine, floors of the forms in seconds, and the part of exact
    steps outside matrix products.
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
    shares = {
        name: roofline.matmul_share(
            model,
            partial(on_a_copy, FORMS["exact"], model, tokens, window, config, options.num_masked),
        )
        for name, config in configs.items()
    }
    return {
        "ceilings": {size: ceiling._asdict() for size, ceiling in ceilings.items()},
        "seconds": composed(each, options.block_length),
        "overhead": {name: 1 - shares[name] for name in shares},
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


def peer_runs(model: LLaDA, options: Options, clock: str) -> dict[str, dict[str, Any]]:
    """Every peer beside ours, on the canvas of the measured step."""
    loaded = [peers.load_peer(Path(folder), model) for folder in options.peer]
    length = options.prompt_length + options.gen_length - peers.NUM_BLOCKS * options.block_length
    return peers.compare(
        loaded,
        model,
        random_tokens(model, length, options.seed),
        options.block_length,
        options.temperature,
        options.peer_repetitions,
        clock,
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
    seconds = measure(model.to(dtype), options)
    clock, machine = (
        ("wall", torch.cuda.get_device_name(device)) if device.type == "cuda" else ("cpu", "cpu")
    )
    medians = {
        name: statistics.median(getattr(each, clock) for each in taken)
        for name, taken in seconds.items()
    }
    mean = composed(medians, options.block_length)
    baseline = {
        name: "reference_greedy" if name.endswith("_greedy") else "reference" for name in mean
    }
    beside = peer_runs(model, options, clock) if options.peer else {}
    return {
        "ratios": {
            name: mean[baseline[name]] / each
            for name, each in mean.items()
            if name != baseline[name]
        },
        "peers": {name: found["ratio"] for name, found in beside.items() if "ratio" in found},
        "peer_runs": beside,
        "times_exact": times_exact(seconds, clock),
        "head_share": {
            str(width): getattr(head_seconds(model, options.block_length, width), clock)
            / medians["exact"]
            for width in (128, 512)
        },
        "router_share": getattr(routing_seconds(model, options), clock) / medians["exact"],
        "same_tokens": same,
        "seconds": mean,
        "floor": floors(model, options, list(medians), clock),
        "memory": memory_growth(model, options)._asdict() if options.memory_length else None,
        "accuracy": judged(medians, options),
        "clock": clock,
        "every_step": {name: [each._asdict() for each in taken] for name, taken in seconds.items()},
        "shape": {"name": options.shape, **SHAPES[options.shape]},
        "machine": {
            "device": machine,
            "dtype": str(dtype).removeprefix("torch."),
            "torch": torch.__version__,
        },
        "options": asdict(options),
    }


def report(result: dict[str, Any]) -> str:
    """All tables that were measured."""
    options, floor = result["options"], result["floor"]
    ceilings = {size: roofline.Ceiling(**each) for size, each in floor["ceilings"].items()}
    parts = [
        table(result),
        roofline.table(floor["seconds"], result["seconds"], ceilings, floor["overhead"]),
    ]
    if result["memory"]:
        config = model_config(result["shape"]["name"], options["memory_length"])
        itemsize = getattr(torch, result["machine"]["dtype"]).itemsize
        parts.append(
            memory.table(memory.Growth(**result["memory"]), config, options["num_masked"], itemsize)
        )
    if result["accuracy"]:
        parts.append(accuracy.table(result["accuracy"], options["accuracy_puzzles"]))
    if result["peer_runs"]:
        parts.append(peers.table(result["peer_runs"]))
    return "\n\n".join(parts)


def table(result: dict[str, Any]) -> str:
    """The medians and ratios as text."""
    lines = [
        f"{result['shape']['name']}, {result['machine']['dtype']}, {result['machine']['device']}: "
        f"{result['clock']} time of a step",
        f"{'form':<32}{'median ms':>12}{'min ms':>10}{'max ms':>10}{'x faster':>10}{'x exact':>10}",
    ]
    for name, seconds in result["seconds"].items():
        # of a cache's mean step there is none
        every = [each[result["clock"]] for each in result["every_step"].get(name, [])]
        ends = [f"{1000 * end(every):.1f}" if every else "" for end in (min, max)]
        ratio = f"{result['ratios'][name]:.2f}" if name in result["ratios"] else ""
        over = f"{result['times_exact'][name]:.3f}" if name in result["times_exact"] else ""
        lines.append(
            f"{name:<32}{1000 * seconds:>12.1f}{ends[0]:>10}{ends[1]:>10}{ratio:>10}{over:>10}"
        )
    lines += [
        f"policy head of {width} hidden units by itself: {100 * share:.3f} % of an exact step"
        for width, share in result["head_share"].items()
    ]
    for name, precision in (("", ""), ("_low_precision", " in bfloat16")):
        gains = [
            seconds[f"batch8_alone{name}"] / seconds[f"batch8{name}"]
            for seconds in (result["seconds"], result["floor"]["seconds"])
        ]
        lines.append(
            f"eight rows together{precision}: {gains[0]:.2f} times the tokens a second of one by "
            f"one, {gains[1]:.2f} by their floors"
        )
    lines.append(f"router by itself: {100 * result['router_share']:.2f} % of an exact step")
    return "\n".join(
        [*lines, f"same tokens at temperature 0: {'yes' if result['same_tokens'] else 'NO'}"]
    )


def run_and_draw(options: Options) -> dict[str, Any]:
    """Measure, and draw where a plot is asked for; what drawing lacks is said first."""
    if options.plot:
        pyplot()
    result = run(options)
    if options.plot:
        speed_plot.draw(result, Path(options.plot))
    return result


def all_agree(result: dict[str, Any]) -> bool:
    """Did ours, the published loop and every peer decode the same greedy tokens?"""
    return result["same_tokens"] and not any(
        found.get("same_tokens") is False for found in result["peer_runs"].values()
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_benchmark(Options, "generation", run_and_draw, report, all_agree, argv)


if __name__ == "__main__":
    sys.exit(main())
