"""The processes of lm-eval's data-parallel runs."""

from __future__ import annotations

import os
from typing import Any

import torch
from lm_eval.api.model import TemplateLM

from llada_plugins.engine.processes import rejoin


class ParallelLM(TemplateLM):
    """lm-eval's base class for a model of which every process has a copy."""

    accelerator: Any = None  # None in a run of one process; lm-eval 0.4.10 and 0.4.11 read it

    def place(self, device: str | None) -> str:
        """Join the other processes, if there are any; returns where this one computes.

        lm-eval passes cuda:0 when the user names no device, on machines without a GPU as
        well: there it means "auto".
        """
        if device is None or (str(device).startswith("cuda") and not torch.cuda.is_available()):
            device = "auto"
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return str(device)
        from accelerate import Accelerator

        on_cpu = str(device) == "cpu" or not torch.cuda.is_available()
        rejoin("gloo" if on_cpu else "nccl")
        self.accelerator = Accelerator(cpu=on_cpu)
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        return str(self.accelerator.device)

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` of every process, concatenated."""
        return tensor if self.accelerator is None else self.accelerator.gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """`obj` of every process, at process `dst`; None elsewhere."""
        if self.accelerator is None:
            return [obj]
        gathered = [None] * self.world_size if self.rank == dst else None
        torch.distributed.gather_object(obj, gathered, dst=dst)
        return gathered

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()
