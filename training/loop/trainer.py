"""The one trainer: transformers' Trainer with the objective as a function.

DDP, accumulation, precision and resuming are the library's. What it adds: a loss divided
once by the weight of the whole update, random streams that a resumed run draws again,
checkpoints in the published layout, and metrics.jsonl.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import (
    EvalPrediction,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainingArguments,
)

from llada_plugins.models.llada import LLaDA

from .length_batches import RowsByLength
from .metrics_log import MetricsLog, ProgressBar
from .objectives import Loss, Objective
from .random_streams import random_stream
from .saving import WholeCheckpoints
from .throughput import Throughput

logger = logging.getLogger(__name__)

# where older versions of accelerate are told the backend
FOR_ACCELERATE = "ACCELERATE_DYNAMO_BACKEND"

# model, folder, its state dict if it had to be gathered
Save = Callable[[nn.Module, Path, Mapping[str, Tensor] | None], None]
Load = Callable[[nn.Module, Path], None]  # fills the model from what Save wrote, to resume
# predictions and labels of a whole evaluation -> metrics
Measure = Callable[[Tensor, Tensor], dict[str, float]]


class DiffusionTrainer(WholeCheckpoints):
    """Trains a model on an objective.

    `save` writes what a checkpoint needs to be loaded again, beside what resuming
    needs. row_order: of the rows to train on; None = at random.
    """

    loss_is_scaled_for_ga = True  # compute_loss divides by the weight of the whole update
    objective: Objective

    def __init__(
        self,
        model: nn.Module,
        arguments: TrainingArguments,
        *,
        objective: Objective,
        save: Save,
        collate: Callable[[Sequence[Any]], dict[str, Tensor]],
        train: Any,  # rows by number, or a stream of them
        evaluation: Any = None,
        load: Load | None = None,
        measure: Measure | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        throughput: Throughput | None = None,
        row_order: RowsByLength | None = None,
    ) -> None:
        with _config_hidden(model), _layers_compiled(model, arguments):
            super().__init__(
                model,
                arguments,
                collate,
                train_dataset=train,
                eval_dataset=evaluation,
                callbacks=[MetricsLog()],
                compute_metrics=None if measure is None else _metrics_of(measure),
            )
        # loss_is_scaled_for_ga, as older transformers are told
        self.model_accepts_loss_kwargs = True
        self.remove_callback(PrinterCallback)
        if self.pop_callback(ProgressCallback):  # which disable_tqdm has left out
            self.add_callback(ProgressBar())
        self.row_order = row_order
        self.throughput = throughput or Throughput()
        # first: what they add to a line is logged everywhere
        self.callback_handler.callbacks[:0] = [self.throughput, *callbacks]
        self.objective = objective
        self.save = save
        self.load = load
        self._micro_step = 0

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        if self.row_order is None:
            return super()._get_train_sampler(train_dataset)
        self.row_order.num_done = lambda: self.state.global_step
        return self.row_order

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """The micro-batches of the next update, and their total weight over all processes."""
        self.throughput.begin()
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:  # transformers 5.0 and before ask beyond the end of a resumed epoch
            return [], torch.zeros((), device=device)
        self.throughput.count(batches)
        weight = torch.stack([batch["weight"].sum() for batch in batches]).sum().to(device)
        self._micro_step = 0
        return batches, self.accelerator.gather(weight).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """This micro-batch's share of the update's loss, times the number of processes.

        DDP divides its gradients by that number.
        """
        # numbered as one process that accumulates all of the update's micro-batches
        # would meet them: the same noise on any number
        number = self._micro_step * self.args.world_size + self.args.process_index
        generator = random_stream(self.args.seed, self.state.global_step, number, 0)
        self._micro_step += 1
        loss = self.objective(model, inputs, generator)
        self._check_finite(loss, "the loss", f"in update {self.state.global_step + 1}")
        assert num_items_in_batch is not None  # from get_batch_samples
        return loss.sum * self.args.world_size / num_items_in_batch

    def _check_finite(self, loss: Loss, name: str, when: str) -> None:
        if not loss.sum.isfinite():
            value = float(loss.sum.detach())
            raise FloatingPointError(f"{name} is {value} {when}; {self._last_good_checkpoint()}")

    def check_weights(self) -> None:
        """Raise FloatingPointError where the last update broke the weights.

        They have had no loss yet, and must neither be saved nor push a good checkpoint
        out.
        """
        assert self.model is not None
        broken = not all(_is_finite(weight) for weight in self.model.parameters())
        # all processes stop, or none
        if self.accelerator.gather(torch.tensor([broken], device=self.args.device)).any():
            raise FloatingPointError(
                f"weights are not finite after update {self.state.global_step}; "
                f"{self._last_good_checkpoint()}"
            )

    def _last_good_checkpoint(self) -> str:
        """The newest checkpoint whose weights have had a finite loss since, in words.

        One at the present step may be what is broken.
        """
        found = {
            int(path.name.removeprefix("checkpoint-")): path
            for path in self.output.glob("checkpoint-*")
        }
        good = [step for step in found if step < self.state.global_step]
        if not good:
            return "there is no checkpoint from before it"
        return f"the last good checkpoint is {found[max(good)]}"

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Loss, predictions and labels of an evaluation batch.

        The noise depends on its tokens alone: it is the same at every evaluation.

        transformers averages it by rows; where processes share an uneven last batch,
        the rows it repeats to fill it weigh in.
        """
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.objective(model, inputs, random_stream(inputs["input_ids"].tolist()))
        self._check_finite(loss, "the evaluation loss", f"after update {self.state.global_step}")
        return loss.sum / loss.count, loss.predictions, loss.labels

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        """Write the model.

        Its state dict comes ready-made where it had to be gathered (FSDP, DeepSpeed).
        """
        if self.args.should_save:
            self.save(
                self.accelerator.unwrap_model(self.model),
                Path(output_dir) if output_dir else self.output,
                state_dict,
            )

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        """Fill the model with the weights of a checkpoint to resume from.

        transformers looks for a whole model, which some of ours save only under FSDP.
        """
        if self.load is None or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.load(self.accelerator.unwrap_model(self.model), Path(resume_from_checkpoint))


def compile_layers(model: nn.Module, backend: str = "inductor") -> None:
    """Have the layers of each LLaDA in a model run compiled."""
    for module in model.modules():
        if isinstance(module, LLaDA):
            module.compile_layers("on", backend)


@contextmanager
def _layers_compiled(model: nn.Module, arguments: TrainingArguments) -> Iterator[None]:
    """Where --torch_compile is given, compile the layers, and keep transformers from the whole.

    All layers share a graph. One of the whole model takes minutes for 32 layers, and serves
    no objective that asks for hidden states. Sharded models, and a --torch_compile_mode, are
    left to transformers.
    """
    sharded = bool(arguments.fsdp) or arguments.deepspeed is not None
    if not arguments.torch_compile or sharded or arguments.torch_compile_mode is not None:
        yield
        return
    compile_layers(model, arguments.torch_compile_backend or "inductor")
    given = arguments.torch_compile_backend, os.environ.pop(FOR_ACCELERATE, None)
    arguments.torch_compile, arguments.torch_compile_backend = False, None
    try:
        yield
    finally:
        arguments.torch_compile, arguments.torch_compile_backend = True, given[0]
        if given[1] is not None:
            os.environ[FOR_ACCELERATE] = given[1]


@contextmanager
def _config_hidden(model: Any) -> Iterator[None]:
    """transformers would write use_cache into a model's config, and ours is frozen."""
    config, model.config = model.config, None
    try:
        yield
    finally:
        model.config = config


def _metrics_of(measure: Measure) -> Callable[[EvalPrediction], dict[str, float]]:
    """`measure` as transformers calls it, with arrays of NumPy."""

    def compute_metrics(found: Any) -> dict[str, float]:
        return measure(torch.from_numpy(found.predictions), torch.from_numpy(found.label_ids))

    return compute_metrics


def _is_finite(weight: Tensor) -> bool:
    if hasattr(weight, "to_local"):  # under FSDP: this process's part
        weight = weight.to_local()
    return bool(weight.isfinite().all())
