"""Processes that their launcher starts again meet each other, and no dead ones."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import torch

from llada_plugins.engine.processes import rejoin

# The first start dies after it met. In the second, rank 0 comes when rank 1 has long looked for
# it, so that whoever reads the old part of the store does so every time.
MEET_TWICE = """
import os, time
from datetime import timedelta
import torch
from llada_plugins.engine.processes import rejoin

again, rank = os.environ["TORCHELASTIC_RESTART_COUNT"] != "0", int(os.environ["RANK"])
if again and rank == 0:
    time.sleep(5)
rejoin("gloo")
if not torch.distributed.is_initialized():
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=10))
met = torch.ones(1)
torch.distributed.all_reduce(met)
if not again:
    os._exit(1)
print(f"rank {rank} met {int(met)}\\n", end="", flush=True)
"""


def free_port() -> int:
    with socket.socket() as some:
        some.bind(("localhost", 0))
        port: int = some.getsockname()[1]
        return port


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["static", "c10d"])
def test_restarted_processes_meet_where_the_dead_did_not(tmp_path, backend):
    script = tmp_path / "meet.py"
    script.write_text(MEET_TWICE)
    launcher = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"),
        *("--max_restarts", "1", "--rdzv_backend", backend),
        *("--rdzv_endpoint", f"localhost:{0 if backend == 'c10d' else free_port()}"),
    ]
    done = subprocess.run(
        [*launcher, str(script)],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["rank 0 met 2", "rank 1 met 2"]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"TORCHELASTIC_RESTART_COUNT": "0", "GROUP_WORLD_SIZE": "1"},
        {"TORCHELASTIC_RESTART_COUNT": "1", "GROUP_WORLD_SIZE": "2"},
    ],
)
def test_a_first_start_and_several_machines_are_left_to_the_harness(monkeypatch, environment):
    for name in ("TORCHELASTIC_RESTART_COUNT", "GROUP_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    rejoin("gloo")
    assert not torch.distributed.is_initialized()
