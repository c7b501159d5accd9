"""The processes that OpenCompass starts for one task (run_cfg.num_procs)."""

from __future__ import annotations

import os
from typing import Any


def join_process_group() -> None:
    """Make ranks of torchrun (run_cfg.num_procs > 1) known, else all write the same files."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import torch.distributed

        from llada_plugins.engine.processes import rejoin

        rejoin("gloo")
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")


def of_first_rank(inputs: Any) -> Any:
    """What rank 0 has, on every rank."""
    from mmengine import dist

    values = [inputs]
    dist.broadcast_object_list(values, src=0)
    return values[0]
