"""What the host has to launch for a layer and for a step: eager, compiled, replayed.

    python -m benchmarks.operators

Operators that give views are left out: they launch nothing. Counts depend on neither
width nor number of columns, so a narrow model with LLaDA-8B's 32 layers is counted. A
compiled layer's are the fused kernels and the products, attention and writes beside them,
as the CPU's inductor cuts them; a GPU's may cut otherwise.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llada_plugins import SamplerConfig
from llada_plugins.models.captured import WARM_UP
from llada_plugins.models.cuda_graph import Results
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.llada_config import LLaDAConfig
from llada_plugins.models.past import Past
from llada_plugins.models.records import leaves
from llada_plugins.options.command_line import run_command
from llada_plugins.options.fields import arg
from llada_plugins.sampling.generate import generate

from .random_models import model_config, random_model, random_tokens

LENGTH, BLOCK = 64, 8  # columns of the canvas, of the block in work


@dataclass(frozen=True, kw_only=True)
class Options:
    """How deep the model is."""

    layers: int = arg(32, "layers of the model whose steps are counted")

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"layers must be at least 1, got {self.layers}")


class Launches(TorchDispatchMode):
    """Within it, operators that compute or write are counted in `found`, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = operator(*args, **(kwargs or {}))
        if operator._schema.is_mutable or not _is_view(result, args):
            self.found[str(operator)] += 1
        return result


def _is_view(result: Any, args: tuple) -> bool:
    """Does an operator's result lie where one of its arguments does?"""
    places = {_place(each) for each in args if isinstance(each, Tensor)}
    return isinstance(result, Tensor) and _place(result) in places


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Uncounted:
    """A Graph that launches nothing, in whose place one launch is to be counted."""

    def capture(self, work: Callable[[], Results]) -> Results:
        """Run the work."""
        self.work: Callable[[], Any] | None = work
        found = work()
        self.found = list(leaves(found))
        return found

    def replay(self) -> None:
        """Do the work the first time, which is compared with it, and nothing after."""
        if self.work is None:
            return
        for kept, again in zip(self.found, leaves(self.work())):
            kept.copy_(again)
        self.work = None


def narrow(layers: int) -> LLaDA:
    """A model of that depth."""
    fields = {**vars(model_config("tiny", 4 * LENGTH)), "n_layers": layers}
    return random_model(LLaDAConfig(**fields), torch.device("cpu"), 0)


def forward(model: LLaDA, cached: bool) -> Callable[[], Any]:
    """A forward of all columns, or of a block's beside the keys and values of the others."""
    tokens = random_tokens(model, LENGTH, 0)
    if not cached:
        return lambda: model.streams(tokens)
    past = Past()
    model.streams(tokens, past=past)
    return lambda: model.streams(tokens, past=past, columns=slice(BLOCK, 2 * BLOCK))


def launches(work: Callable[[], Any]) -> int:
    """Operators that the work launches."""
    with Launches() as counted:
        work()
    return counted.found.total()


@torch.inference_mode()
def eager_layer(cached: bool) -> int:
    """Operators of an eager layer: of a model of two without those of a model of one."""
    return launches(forward(narrow(2), cached)) - launches(forward(narrow(1), cached))


@torch.inference_mode()
def compiled_layer(cached: bool) -> int:
    """Kernels of a compiled layer: fused ones, and those of libraries beside them."""
    from torch._inductor import metrics

    torch._dynamo.reset()
    beside = []
    for layers in (1, 2):
        model = narrow(layers)
        work = forward(model, cached)
        model.compile_layers("on")
        metrics.reset()
        work()
        if layers == 1:
            fused = metrics.generated_kernel_count
        beside.append(_called(work))
    return fused + beside[1] - beside[0]


def _called(work: Callable[[], Any]) -> int:
    """Products and attention, by the profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        work()
    names = ("aten::mm", "aten::addmm", "aten::bmm", "aten::_scaled_dot_product_")
    return sum(event.count for event in found.key_averages() if event.key.startswith(names))


def later_step(layers: int, replayed: bool) -> int:
    """Operators of a later step of `dual`, the head and the sampler's part included."""
    model = narrow(layers)
    if replayed:
        model.compile_layers("off", make_graph=Uncounted)
    prompt = random_tokens(model, LENGTH - BLOCK, 0).tolist()

    def steps(number: int) -> int:
        config = SamplerConfig(gen_length=BLOCK, block_length=BLOCK, steps=number, cache="dual")
        return launches(lambda: generate(model, prompt, config))

    for _ in range(WARM_UP + 1):  # then the block's first forward is captured as well
        steps(BLOCK), steps(BLOCK // 2)
    more, fewer = steps(BLOCK), steps(BLOCK // 2)
    graphs = 2 * replayed  # the forward's and that of what the step decides, a launch each
    return (more - fewer) // (BLOCK // 2) + graphs


def table(layers: int) -> str:
    """All counts, as Markdown."""
    rows = [
        "| | exact | dual, later step |",
        "|---|---|---|",
        f"| a layer, eager | {eager_layer(False)} | {eager_layer(True)} |",
        f"| a layer, compiled | {compiled_layer(False)} | {compiled_layer(True)} |",
        f"| a step of {layers} layers | – | {later_step(layers, replayed=False)} |",
        f"| a step, replayed | – | {later_step(layers, replayed=True)} |",
    ]
    return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    program = "python -m benchmarks.operators"
    return run_command(Options, program, lambda options: table(options.layers), argv)


if __name__ == "__main__":
    sys.exit(main())
