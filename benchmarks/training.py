"""Throughput and memory of pre-training, against a bare PyTorch loop, on random weights and tokens.

    python -m benchmarks.training
        a small shape, one CPU thread; 1 minute of it
    python -m benchmarks.training --shape 100m --measure memory --seq_len 64
        one model of 279 M parameters; 6 GB
    python -m benchmarks.training --measure throughput --torch_compile
        what compiling buys: the bare loop stays as it is; 2 minutes
    python -m benchmarks.training --shape 100m --seq_len 512 --activation_checkpointing
        what is saved and what it costs; 4 minutes, 10 GB
    python -m benchmarks.training --shape 100m --device cuda --dtype bfloat16 \\
            --batch_size 32 --seq_len 1024

`throughput`: after every update of the trainer the bare loop makes the same one on a
copy of the model: same batch, masks, precision, clipping and optimizer. The ratio is
that of tokens a second, from medians over updates, by CPU time on a CPU and wall time
on a GPU; the trainer's share includes its data loader and logging. Exit status 1 if the
losses of the two differ. `memory`: the peak of a few updates above what was held before
the model was made, over an estimate: 16 bytes a parameter (weight, gradient, two
moments of Adam, fp32), and activations (see `activation_bytes`).
"""

from __future__ import annotations

import copy
import gc
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from llada_plugins.models.folder import known_special_tokens
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.placement import pick_device
from llada_plugins.models.quantization import num_parameters
from llada_plugins.options.fields import arg
from training.data.corpus import collate_rows
from training.loop import objectives
from training.loop.throughput import training_flops
from training.loop.trainer import DiffusionTrainer
from training.runs.arguments import RunArguments

from .bare_loop import LEARNING_RATE, Bare
from .clock import clock_of, device_name
from .command import check_counts, check_folder, run_benchmark
from .process_memory import measured
from .random_models import SHAPES, model_config, random_model

# 5.8 M parameters
SMALL: dict[str, Any] = dict(
    d_model=256, n_layers=6, n_heads=4, mlp_hidden_size=688, vocab_size=2048
)
NOT_MEASURED = 2  # first updates: memory is allocated, Adam's moments are made
TOLERANCE = 1e-3  # of the loss, relative: the two drift apart by rounding


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured, and where."""

    shape: Literal["tiny", "small", "100m", "8b"] = arg(
        "small",
        "width and depth of the model: tiny (to try the command), small (5.8 M parameters), 100m "
        "(279 M) or 8b (LLaDA-8B)",
    )
    measure: Literal["both", "throughput", "memory"] = arg(
        "both", "throughput holds two models, memory one"
    )
    device: str = arg("cpu", "auto (a GPU if there is one), cpu, cuda or cuda:N")
    dtype: Literal["float32", "bfloat16"] = arg(
        "float32", "of matrix products, by autocast; weights stay in float32"
    )
    torch_compile: bool = arg(
        False, "the trainer's model compiled, by its flag of this name; a C++ compiler is needed"
    )
    activation_checkpointing: bool = arg(
        False, "the trainer's blocks compute their activations again"
    )
    threads: int = arg(1, "CPU threads; one is steadiest on a shared machine")
    batch_size: int = arg(8, "rows of an update")
    seq_len: int = arg(128, "tokens of a row")
    updates: int = arg(20, "updates measured, after two that are not")
    seed: int = arg(0, "of weights, tokens and masks")
    json: str | None = arg(None, "file for the results as JSON")

    def __post_init__(self) -> None:
        check_counts(self, "threads", "batch_size", "seq_len", "updates")
        check_folder("json", self.json)
        pick_device(self.device)


def training_model(options: Options) -> LLaDA:
    """Random weights, ready for training."""
    config = model_config("tiny" if options.shape == "small" else options.shape, options.seq_len)
    if options.shape == "small":
        config = replace(config, **SMALL, mask_token_id=SMALL["vocab_size"] - 1)
    return (
        random_model(config, pick_device(options.device), options.seed).train().requires_grad_(True)
    )


def train(model: LLaDA, options: Options, updates: int, watch: Bare | None = None) -> None:
    """Updates by the package's trainer on random rows; nothing is kept of them."""
    if options.activation_checkpointing:
        model.activation_checkpointing_enable()  # what the trainer's flag of this name calls
    objective = objectives.pretrain(known_special_tokens(model).mask, random_lengths=0.0)
    generator = torch.Generator().manual_seed(options.seed)
    rows = torch.randint(
        known_special_tokens(model).mask,
        (options.batch_size * updates, options.seq_len),
        generator=generator,
    ).tolist()
    with tempfile.TemporaryDirectory() as folder:
        arguments = RunArguments(
            output_dir=folder,
            max_steps=updates,
            per_device_train_batch_size=options.batch_size,
            weight_decay=0.0,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            warmup_steps=0,
            save_strategy="no",
            use_cpu=model.device.type == "cpu",
            bf16=options.dtype == "bfloat16",
            seed=options.seed,
            torch_compile=options.torch_compile,
        )
        DiffusionTrainer(
            model,
            arguments,
            objective=watch.watched(objective) if watch else objective,
            save=lambda *_: None,
            collate=collate_rows(known_special_tokens(model).mask, False),
            train=rows,
            callbacks=[watch] if watch else [],
        ).train()


def throughput(options: Options) -> dict[str, Any]:
    """Tokens a second of both, their ratio, and whether they did the same."""
    model = training_model(options)
    bare = Bare(copy.deepcopy(model), options.dtype)
    train(model, options, options.updates + NOT_MEASURED, bare)
    medians = {
        name: statistics.median(seconds[NOT_MEASURED:]) for name, seconds in bare.seconds.items()
    }
    tokens = options.batch_size * options.seq_len
    return {
        "ratio": medians["bare"] / medians["trainer"],
        "tokens_per_second": {name: tokens / seconds for name, seconds in medians.items()},
        "flops_per_second": {
            name: tokens * training_flops(model, options.seq_len) / seconds
            for name, seconds in medians.items()
        },
        "same_losses": all(
            abs(theirs - ours) <= TOLERANCE * abs(theirs) for theirs, ours in bare.losses
        ),
        "every_update": bare.seconds,
        "losses": bare.losses,
    }


def activation_bytes(
    model: LLaDA, batch_size: int, seq_len: int, width: int = 4, recompute: bool = False
) -> int:
    """What a backward pass needs kept, in numbers of `width` bytes.

    Of a token and layer 10 D + 4 M, and H L of attention probabilities.

    D: both norms' inputs and their two products each, queries, keys, values, attended;
    M, the MLP's width: gate, its SiLU, the other half, their product. Behind the layers
    3 D: the last norm's input and product, the head's input; and of a masked token 3 V:
    logits, their softmax and its gradient; every token may be masked. recompute: all
    layers keep their input, D, and one at a time has the rest.
    """
    config = model.config
    layer = 10 * config.d_model + 4 * config.mlp_hidden_size + config.n_heads * seq_len
    layers = config.n_layers * config.d_model + layer if recompute else config.n_layers * layer
    return width * batch_size * seq_len * (layers + 3 * config.d_model + 3 * config.num_embeddings)


def memory(options: Options) -> dict[str, Any]:
    """The peak of training against its estimate, in bytes."""
    models: list[LLaDA] = []

    def work() -> None:
        models.append(training_model(options))
        train(models[0], options, NOT_MEASURED)

    _, peak = measured(work, pick_device(options.device))
    parameters = 16 * num_parameters(models[0])
    activations = activation_bytes(
        models[0],
        options.batch_size,
        options.seq_len,
        2 if options.dtype == "bfloat16" else 4,
        options.activation_checkpointing,
    )
    return {
        "peak": peak,
        "parameters_and_optimizer": parameters,
        "activations": activations,
        "ratio": None if peak is None else peak / (parameters + activations),
    }


def run(options: Options) -> dict[str, Any]:
    """The whole benchmark; its result can be written as JSON.

    Memory first: what is measured is a rise above what was held before.
    """
    device = pick_device(options.device)
    result: dict[str, Any] = {}
    if options.measure != "throughput":
        result["memory"] = memory(options)
        gc.collect()
    if options.measure != "memory":
        result["throughput"] = throughput(options)
    return {
        **result,
        "shape": {
            "name": options.shape,
            **(SMALL if options.shape == "small" else SHAPES[options.shape]),
        },
        "machine": {
            "device": device_name(device),
            "dtype": options.dtype,
            "clock": clock_of(device),
            "torch": torch.__version__,
        },
        "options": asdict(options),
    }


def table(result: dict[str, Any]) -> str:
    """The numbers as text."""
    machine, options = result["machine"], result["options"]
    lines = [
        f"{options['shape']}, {machine['dtype']}, {machine['device']}: {options['batch_size']} "
        f"rows of {options['seq_len']} tokens"
    ]
    if found := result.get("throughput"):
        for name, rate in found["tokens_per_second"].items():
            flops = found["flops_per_second"][name] / 1e9
            lines.append(
                f"{name:<10}{rate:>12.0f} tokens/s ({machine['clock']} time){flops:>12.1f} GFLOP/s"
            )
        lines.append(
            f"trainer / bare loop: {found['ratio']:.3f}; same losses: "
            f"{'yes' if found['same_losses'] else 'NO'}"
        )
    if found := result.get("memory"):
        parts = " + ".join(
            f"{found[name] / 1e6:.0f}" for name in ("parameters_and_optimizer", "activations")
        )
        told = (
            "not told by this system"
            if found["peak"] is None
            else f"{found['peak'] / 1e6:.0f} MB, {found['ratio']:.2f} of the estimate"
        )
        lines.append(
            f"peak memory: {told} ({parts} MB: weights, gradients and optimizer; activations)"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_benchmark(
        Options,
        "training",
        run,
        table,
        lambda result: result.get("throughput", {}).get("same_losses", True),
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
