"""What a decoding step has to do, and how fast the machine can.

FLOPs and bytes from shapes, ceilings measured, floors from both.

A floor counts what the form cannot do without: the blocks at the columns that it
computes, the head at the positions that it decides on (the published loop: at all),
attention of those columns to all, every weight read once, keys and values that a cache
keeps, and the logits written and read once. It is the larger of FLOPs over the matmul
ceiling and bytes over the memory bandwidth.

Of a mixture's experts those are read that some token takes: as many as the tokens could
take, unless it was counted how many they take.

The int8 forms have none: torchao converts a weight to the activations' dtype at every
product, so what its bytes and its products can do is another kernel's ceiling, which is
not measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llada_plugins.models.llada_config import LLaDAConfig

from .clock import Clock, timed

# in names of operators that are matrix products
MATMULS = ("mm", "addmm", "bmm", "baddbmm", "linear", "mkldnn_linear", "attention")
# the same in names of kernels
KERNELS = ("gemm", "cutlass", "flash", "fmha", "nvjet", "xmma")


class Work(NamedTuple):
    """What one step of some rows computes."""

    columns: int  # at which the blocks are computed, of all rows
    attended: int  # pairs of a computed column and one that it attends to
    positions: int  # at which logits are computed
    kept: int = 0  # columns whose keys and values come from a cache


class Place(NamedTuple):
    """The measured step."""

    length: int  # columns of the canvas
    start: int  # first column of the active block
    block_length: int
    num_masked: int  # masked tokens left in it


class Ceiling(NamedTuple):
    """What the machine reaches."""

    flops: float  # a second, in matrix products
    bandwidth: float  # bytes a second, read
    # after a second of them: a GPU that draws all its power slows down. Not in any floor
    lasting_flops: float | None = None


def row_work(form: str, length: int, start: int, block_length: int, num_masked: int) -> Work:
    """The work of a form in benchmarks.steps on one row of `length` columns.

    Its active block begins at column `start`.
    """
    if form.startswith("reference"):
        return Work(length, length * length, length)
    columns = {"prefix_later": length - start, "dual_later": block_length}.get(
        "_".join(form.split("_")[:2]), length
    )
    return Work(columns, columns * length, num_masked, length - columns)


def mean_left(num_masked: int, num_steps: int) -> int:
    """Masked tokens before a step, the mean over steps that leave none; rounded down.

    The first steps take one token more where the number is no multiple.
    """
    share, remainder = divmod(num_masked, num_steps)
    taken = [share + (step < remainder) for step in range(num_steps)]
    return sum(num_masked - sum(taken[:step]) for step in range(num_steps)) // num_steps


def stack_weights(config: LLaDAConfig, experts: float) -> float:
    """Weights of all layers' matrices.

    experts: of each mixture so many are counted, beside those that every token takes.
    """
    num_mixtures = config.n_layers - config.num_dense_layers if config.num_experts else 0
    heads = 2 * (config.n_heads + config.num_kv_heads) * config.head_dim
    mlp = 3 * config.mlp_hidden_size
    mixture = 3 * config.expert_width * (experts + config.num_shared_experts) + config.num_experts
    all_layers = config.n_layers * heads + (config.n_layers - num_mixtures) * mlp
    return config.d_model * (all_layers + num_mixtures * mixture)


def flops(config: LLaDAConfig, work: Work) -> float:
    """Floating-point operations of matrix products; a product and a sum are two."""
    products = 2 * stack_weights(config, config.experts_per_token) * work.columns
    attention = 4 * config.n_layers * config.n_heads * config.head_dim * work.attended
    return products + attention + 2.0 * config.d_model * config.vocab_size * work.positions


def num_bytes(
    config: LLaDAConfig, work: Work, itemsize: int, experts: float | None = None
) -> float:
    """Bytes that have to move between memory and processor.

    experts: of each mixture as many are read, on average; by default as many as a router
    that uses all of them spreads its tokens over.
    """
    if experts is None:
        experts = min(config.num_experts, config.experts_per_token * work.columns)
    kept = 2 * config.n_layers * config.num_kv_heads * config.head_dim * work.kept
    head = config.d_model * config.vocab_size + 2 * work.positions * config.vocab_size
    return itemsize * float(stack_weights(config, experts) + kept + head)


def floor_seconds(
    config: LLaDAConfig,
    work: Iterable[Work],
    itemsize: int,
    ceiling: Ceiling,
    experts: float | None = None,
) -> float:
    """The least time of this work in one pass. experts: as of `num_bytes`."""
    total = Work(*map(sum, zip(*work)))
    return max(
        flops(config, total) / ceiling.flops,
        num_bytes(config, total, itemsize, experts) / ceiling.bandwidth,
    )


def step_floors(
    config: LLaDAConfig,
    names: Iterable[str],
    place: Place,
    ragged: Sequence[int],
    itemsize: int,
    ceilings: dict[int, Ceiling],
) -> dict[str, float]:
    """Floors of those of the named forms whose work is known, in seconds.

    ragged: columns that the rows of a batch lack at the left. itemsize: bytes of a
    weight, but for `low_precision`, which has 2; ceilings: by that number.
    """
    found = {}
    for name in names:
        if (
            not name.startswith(("reference", "exact", "first", "prefix_later", "dual_later"))
            or "int8" in name
        ):
            continue
        size = 2 if "low_precision" in name else itemsize
        cuts = ragged if "batch8" in name or "alone" in name else (0,)
        rows = [
            row_work(
                name, place.length - cut, place.start - cut, place.block_length, place.num_masked
            )
            for cut in cuts
        ]
        passes = [[row] for row in rows] if "alone" in name else [rows]
        found[name] = sum(floor_seconds(config, each, size, ceilings[size]) for each in passes)
    return found


@torch.inference_mode()
def measured_ceiling(
    device: torch.device,
    dtype: torch.dtype,
    clock: Clock,
    megabytes: int | None = None,
    repetitions: int = 3,
) -> Ceiling:
    """The best of a few matrix products of a model's sizes, and of reading memory once.

    megabytes: read in a matrix-vector product or a sum (default: 64, of a GPU 1024, which
    its cache cannot hold). Data are random: a GPU multiplies ones with less power, hence
    faster than anything that a model computes.
    """
    on_gpu = device.type == "cuda"
    megabytes = megabytes or (1024 if on_gpu else 64)
    generator = torch.Generator(device).manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device, dtype=dtype)

    def best(work: Callable[[], Any]) -> float:
        work()  # the first call is slower
        return min(getattr(timed(work, device), clock) for _ in range(repetitions))

    width = 256 * max(1, int(megabytes**0.5))
    weight = random(width, width)
    few, many = random(512, width), random(4096 if on_gpu else 1024, width)

    def product_rate(x: Tensor) -> float:
        return 2.0 * x.numel() * width / best(partial(F.linear, x, weight))

    rates, lasting = [product_rate(few), product_rate(many)], None
    if on_gpu:
        for _ in range(round(rates[-1] / (2.0 * many.numel() * width))):  # about a second
            F.linear(many, weight)
        lasting = product_rate(many)
    stream = random(megabytes * 2**20 // weight.itemsize // 1024, 1024)
    vector = random(1024)
    seconds = min(best(lambda: stream @ vector), best(lambda: stream.sum()))
    return Ceiling(max(rates), stream.nbytes / seconds, lasting)


class Profile(NamedTuple):
    """What a step makes its processor do."""

    num_calls: int  # kernels of a GPU, operators of a CPU
    busy_seconds: float
    product_share: float  # of that time, in matrix products and attention

    def idle_share(self, seconds: float) -> float:
        """The part of a step of so many seconds in which nothing was computed.

        NaN where the profiler saw nothing, as where a machine does not let it.
        """
        if not self.busy_seconds:
            return math.nan
        return max(0.0, 1 - self.busy_seconds / seconds)


def profiled(step: Callable[[], Any], device: torch.device) -> Profile:
    """The kernels (operators) of one step, by torch's profiler, which slows it down."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    step()  # the first call is slower
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as found:
        step()
        if on_gpu:
            torch.cuda.synchronize(device)
    spent: dict[str, float] = {}
    num_calls = 0
    for event in found.key_averages():
        time = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if time > 0:
            spent[event.key] = time  # microseconds
            num_calls += event.count
    names = KERNELS if on_gpu else MATMULS
    products = (time for name, time in spent.items() if any(part in name.lower() for part in names))
    total = sum(spent.values())
    return Profile(num_calls, total / 1e6, sum(products) / total if total else math.nan)


def table(
    floors: dict[str, float],
    seconds: dict[str, float],
    ceilings: dict[int, Ceiling],
    overhead: dict[str, float],
) -> str:
    """Floors beside what was measured."""
    lines = [
        f"ceiling, {8 * size} bits: {each.flops / 1e9:.0f} GFLOP/s, {each.bandwidth / 1e9:.1f} GB/s"
        for size, each in ceilings.items()
    ]
    lines.append(f"{'form':<32}{'floor ms':>12}{'median ms':>12}{'achieved':>10}")
    for name, floor in floors.items():
        taken = seconds[name]
        lines.append(f"{name:<32}{1000 * floor:>12.1f}{1000 * taken:>12.1f}{floor / taken:>10.2f}")
    lines += [
        f"outside matrix products and attention, {name}: {100 * share:.1f} % of a step"
        for name, share in overhead.items()
    ]
    return "\n".join(lines)
