"""The processes that torchrun or accelerate started for one command."""

from __future__ import annotations

import os

import torch


def rejoin(backend: str | None = None) -> None:
    """Meet the other processes where none before them did, if a launcher started all again.

    On one machine, torch 2.13 starts processes again (`--max_restarts`) with the store that
    those before them met in. Who finds a dead one's address there waits for it until the
    timeout. So every start has a part of the store of its own.

    Does nothing in a first start. Nor on several machines, whose counts of restarts may
    differ. backend: default gloo, or nccl where there is a GPU.
    """
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    several_machines = os.environ.get("GROUP_WORLD_SIZE", "1") != "1"
    if count == "0" or several_machines or torch.distributed.is_initialized():
        return
    store, rank, world_size = next(iter(torch.distributed.rendezvous("env://")))
    torch.distributed.init_process_group(
        backend or ("nccl" if torch.cuda.is_available() else "gloo"),
        store=torch.distributed.PrefixStore(f"start {count}", store),
        rank=rank,
        world_size=world_size,
    )
