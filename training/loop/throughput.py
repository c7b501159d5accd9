"""Tokens a second and model FLOP utilisation of training, for metrics.jsonl.

Knows nothing of objectives.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llada_plugins.models.llada import LLaDA

logger = logging.getLogger(__name__)

IDLE_BELOW = 0.3  # flop_utilisation of a GPU that is told with what may help
SMALL_BATCH = 8192  # tokens of a forward, below which launches take longer than arithmetic


class Throughput(TrainerCallback):
    """Adds tokens_per_second of the updates since the last line, all processes together.

    Evaluations and checkpoints are left out.

    flops: of a token; with peak, FLOP/s of a device, it also adds flop_utilisation
    (0-1). Tokens are those of the rows, each once, though a block-causal model sees most of
    them twice, noisy and clean. Padding counts too: the model sees it. told_below: a
    utilisation under which the log says once what may help; 0 = never.
    """

    def __init__(
        self, flops: float | None = None, peak: float | None = None, told_below: float = 0.0
    ) -> None:
        self.flops, self.peak, self.told_below = flops, peak, told_below
        self._tokens, self._seconds, self._began = 0, 0.0, 0.0
        self._forwards, self._lines = 0, 0

    def begin(self) -> None:
        """An update begins."""
        self._began = time.perf_counter()

    def count(self, batches: Sequence[dict[str, Tensor]]) -> None:
        """The update's micro-batches on this process."""
        self._tokens += sum(batch["input_ids"].numel() for batch in batches)
        self._forwards += len(batches)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self._seconds += time.perf_counter() - self._began

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs is None or "loss" not in logs or not self._seconds:
            return
        rate = self._tokens / self._seconds  # of this process
        logs["tokens_per_second"] = rate * args.world_size
        if self.flops and self.peak:
            logs["flop_utilisation"] = rate * self.flops / self.peak
            self._tell(logs["flop_utilisation"], args)
        self._tokens, self._forwards, self._seconds = 0, 0, 0.0

    def _tell(self, utilisation: float, args: TrainingArguments) -> None:
        """Say once that the device is hardly used, and what may help.

        Not of the first line: an optimizer's states are made in it, and graphs compiled.
        """
        self._lines += 1
        if self._lines < 2 or utilisation >= self.told_below or not args.should_log:
            return
        self.told_below = 0.0
        logger.warning(
            "the device does %.0f %% of the FLOP/s that its matrix products reach; what may help: "
            "%s",
            100 * utilisation,
            "; ".join(remedies(args, self._tokens / self._forwards)),
        )


def training_flops(model: LLaDA, length: int, noisy_share: float = 1.0) -> float:
    """FLOPs that training must spend on a token of a row of `length`.

    6 a weight of a matrix that it meets, and 12 D L a layer for attention, D the width
    of all heads.

    The head counts half, for on average every other token is masked and has logits;
    recomputation would not count. noisy_share: of a block-causal model, the tokens that
    stand noisy beside all the clean ones; each attends to (L + block) / 2 on average.
    """
    config = model.config
    columns, sees = 1.0, float(length)
    if config.attention == "block_causal" and config.block_length is not None:
        columns, sees = 1 + noisy_share, (length + config.block_length) / 2
    of_blocks = model.get_submodule("model.transformer.blocks").parameters()
    # of a stack of experts a token takes some
    used = {2: 1.0, 3: config.experts_per_token / max(config.num_experts, 1)}
    blocks = sum(weight.numel() * used.get(weight.dim(), 0) for weight in of_blocks)
    head = config.num_embeddings * config.d_model / 2
    attended = config.n_layers * config.n_heads * config.head_dim
    return 6 * (columns * blocks + noisy_share * head) + 12 * columns * attended * sees


def matmul_peak(device: torch.device, dtype: torch.dtype, repetitions: int = 5) -> float:
    """FLOP/s of the best of some square matrix products: what the device reaches here.

    Data are random, as a model's are: ones take a GPU less power, and are faster.
    """
    size = 8192 if device.type == "cuda" else 1024
    generator = torch.Generator(device).manual_seed(0)
    a, b = (
        torch.randn(size, size, generator=generator, device=device, dtype=dtype) for _ in range(2)
    )
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds = []
    for _ in range(1 + repetitions):
        wait()
        began = time.perf_counter()
        a @ b
        wait()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds[1:])  # the first call is slower


def measured(
    model: LLaDA,
    length: int,
    arguments: TrainingArguments,
    noisy_share: float = 1.0,
    views: int = 1,
) -> Throughput:
    """Throughput with the utilisation of this process's device.

    It is of the precision of the run's matrix products. noisy_share: see `training_flops`.
    views: how often an update shows each row.
    """
    dtype = torch.float16 if arguments.fp16 else torch.float32
    if arguments.bf16:
        dtype = torch.bfloat16
    told_below = IDLE_BELOW if arguments.device.type == "cuda" else 0.0
    return Throughput(
        views * training_flops(model, length, noisy_share),
        matmul_peak(arguments.device, dtype),
        told_below,
    )


def remedies(arguments: TrainingArguments, tokens: float) -> list[str]:
    """What may raise the utilisation of a GPU by these arguments; tokens: of a forward."""
    found = []
    if tokens < SMALL_BATCH:
        found.append(f"a larger --per_device_train_batch_size (a forward has {tokens:.0f} tokens)")
    if not (arguments.bf16 or arguments.fp16):
        found.append("--bf16, mixed precision")
    if not arguments.torch_compile:
        found.append("--torch_compile")
    if arguments.gradient_checkpointing:
        found.append("no --gradient_checkpointing, if memory allows")
    if not arguments.dataloader_num_workers:
        found.append("--dataloader_num_workers 1, if rows are read from a slow disk")
    return found
