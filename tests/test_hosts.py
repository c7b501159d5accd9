"""Runs on two hosts, which the tests make of network namespaces; and runs of which a process or
a host is lost.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.commands import OWN_TASKS
from tests.small_training import write_sudokus
from training.runs import restarts
from training.runs.arguments import RunArguments

ROOT = Path(__file__).parents[1]
UPDATES, SAVE_EVERY = 40, 5
# Without it processes of several hosts that start again read where the dead ones were, and wait
# for them (torch 2.13, gloo). On one host ours find each other (engine/processes.py).
FRESH_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
DEADLINE = 600.0  # seconds that a command may take; only a hang meets it


class Hosts:
    """Two network namespaces with a cable between them."""

    def __init__(self) -> None:
        self.names = [f"llada{os.getpid()}{letter}" for letter in "ab"]
        self.addresses = ["10.77.0.1", "10.77.0.2"]

    def make(self) -> None:
        for name in self.names:
            _ip("netns", "add", name)
        ends = [f"v{os.getpid()}{letter}" for letter in "ab"]
        _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for name, end, address in zip(self.names, ends, self.addresses):
            _ip("link", "set", end, "netns", name)
            _ip("-n", name, "link", "set", end, "name", "eth0")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                _ip("-n", name, "link", "set", device, "up")

    def remove(self) -> None:
        for name in self.names:
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "del", name)

    def start(self, number: int, words: list[str], log: Path) -> subprocess.Popen[bytes]:
        """torchrun's agent on one host, for a command of two processes."""
        agent = [
            *("-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"),
            *("--rdzv_backend", "c10d", "--rdzv_endpoint", f"{self.addresses[0]}:29400"),
            *("--rdzv_id", "two-hosts", "--rdzv_conf", f"is_host={int(number == 0)}"),
            *("--local_addr", self.addresses[number], "--max_restarts", "3"),
        ]
        there = ["ip", "netns", "exec", self.names[number], sys.executable]
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "eth0", **FRESH_STORE}
        with log.open("ab") as file:
            return subprocess.Popen(
                [*there, *agent, *words],
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    made = Hosts()
    try:
        made.make()
    except (OSError, subprocess.CalledProcessError) as error:
        made.remove()
        pytest.skip(f"no network namespaces can be made here: {error}")
    yield made
    made.remove()


def lose(process: subprocess.Popen[bytes]) -> None:
    """Kill the agent and its children at once, as a loss of power does."""
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    for pid in [str(process.pid), *children]:
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    process.wait()


def wait_for(path: Path, processes: list[subprocess.Popen[bytes]], log: Path) -> None:
    """Until there is something at the path; all processes must live."""
    end = time.monotonic() + DEADLINE
    while not path.exists():
        assert time.monotonic() < end, log.read_text()
        assert all(process.poll() is None for process in processes), log.read_text()
        time.sleep(0.01)


def training(tmp_path: Path, checkpoint: Path, out: Path) -> list[str]:
    data = write_sudokus(tmp_path / "data.jsonl", 24)
    return [
        *("-m", "training.sft", "--model", str(checkpoint), "--data", str(data)),
        *("--output_dir", str(out), "--per_device_train_batch_size", "2", "--use_cpu"),
        *("--max_steps", str(UPDATES), "--save_strategy", "steps", "--num_threads", "1"),
        *("--save_steps", str(SAVE_EVERY), "--logging_steps", "1", "--disable_tqdm", "true"),
    ]


def torchrun(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Two processes of this host."""
    agent = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, *agent, "--max_restarts", "2", *words],
            cwd=ROOT,
            stdout=file,
            stderr=file,
        )


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> bytes:
    """What two processes of one host train, undisturbed."""
    tmp_path = tmp_path_factory.mktemp("uninterrupted")
    words, log = training(tmp_path, tiny_checkpoint, tmp_path / "out"), tmp_path / "log"
    assert torchrun(words, log).wait(DEADLINE) == 0, log.read_text()
    return weights(tmp_path / "out")


@pytest.mark.slow
def test_a_run_goes_on_after_one_of_its_processes_was_killed(
    tmp_path: Path, tiny_checkpoint: Path, uninterrupted: bytes
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    agent = torchrun(training(tmp_path, tiny_checkpoint, out), log)
    wait_for(out / f"checkpoint-{SAVE_EVERY}", [agent], log)
    workers = subprocess.run(
        ["pgrep", "-P", str(agent.pid)], capture_output=True, text=True
    ).stdout.split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    assert agent.wait(DEADLINE) == 0, log.read_text()
    assert "the run goes on from" in log.read_text()
    assert weights(out) == uninterrupted


@pytest.mark.slow
def test_two_hosts_of_which_one_is_late_train_what_one_host_does(
    tmp_path: Path, tiny_checkpoint: Path, uninterrupted: bytes, hosts: Hosts
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    words = training(tmp_path, tiny_checkpoint, out)
    first = hosts.start(0, words, log)
    time.sleep(5)
    second = hosts.start(1, words, log)
    assert [first.wait(DEADLINE), second.wait(DEADLINE)] == [0, 0], log.read_text()
    assert weights(out) == uninterrupted


@pytest.mark.slow
def test_a_run_goes_on_after_a_host_died_and_came_back(
    tmp_path: Path, tiny_checkpoint: Path, uninterrupted: bytes, hosts: Hosts
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    words = training(tmp_path, tiny_checkpoint, out)
    agents = [hosts.start(number, words, log) for number in range(2)]
    wait_for(out / f"checkpoint-{SAVE_EVERY}", agents, log)
    lose(agents[1])
    back = hosts.start(1, words, log)
    assert [agents[0].wait(DEADLINE), back.wait(DEADLINE)] == [0, 0], log.read_text()
    assert "the run goes on from" in log.read_text()
    assert weights(out) == uninterrupted


@pytest.mark.slow
def test_lm_eval_on_two_hosts_gives_the_answers_of_one_process(
    tmp_path: Path, hosts: Hosts
) -> None:
    log = tmp_path / "log"
    words = [
        *(*OWN_TASKS, "--model", "llada", "--tasks", "sudoku4", "--limit", "6"),
        *("--include_path", "configs/lmeval", "--gen_kwargs", "steps=8", "--device", "cpu"),
        *("--log_samples", "--output_path"),
    ]
    both = [hosts.start(number, [*words, str(tmp_path / "two")], log) for number in range(2)]
    assert [process.wait(DEADLINE) for process in both] == [0, 0], log.read_text()
    alone = [sys.executable, *words, str(tmp_path / "one")]
    subprocess.run(alone, cwd=ROOT, check=True, capture_output=True)
    assert answers(tmp_path / "two") == answers(tmp_path / "one")


def answers(output: Path) -> dict[int, str]:
    [samples] = output.rglob("samples_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    return {row["doc_id"]: row["filtered_resps"][0] for row in rows}


# --- what a restarted command does with the output folder -----------------------------


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunArguments:
    """Those of a command of launch "mine"."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    return RunArguments(output_dir=str(tmp_path), use_cpu=True)


def begun(folder: Path, launch: str | None, *files: str) -> None:
    (folder / "run.json").write_text(json.dumps({"launch": launch}))
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()


CHECKPOINT = "checkpoint-3/model.safetensors"


@pytest.mark.parametrize(
    ("launch", "files", "resume", "overwrite"),
    [
        ("mine", [CHECKPOINT], True, False),
        ("mine", ["metrics.jsonl"], False, True),
        ("mine", ["model.safetensors"], False, False),  # ended; never overwritten
        ("other", [CHECKPOINT], False, False),
        (None, [CHECKPOINT], False, False),
    ],
    ids=["checkpoint", "none yet", "ended", "another launch", "no launcher"],
)
def test_only_a_run_of_the_same_launch_goes_on(
    arguments: RunArguments,
    tmp_path: Path,
    launch: str | None,
    files: list[str],
    resume: bool,
    overwrite: bool,
) -> None:
    begun(tmp_path, launch, *files)
    restarts.go_on(arguments)
    assert (arguments.resume, arguments.overwrite) == (resume, overwrite)


@pytest.mark.parametrize(("restarted", "resume"), [("0", False), ("1", True)])
def test_overwrite_holds_for_the_first_start_alone(
    arguments: RunArguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    restarted: str,
    resume: bool,
) -> None:
    begun(tmp_path, "mine", CHECKPOINT)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarted)
    arguments.overwrite = True
    restarts.go_on(arguments)
    assert (arguments.resume, arguments.overwrite) == (resume, not resume)


def test_launchers_without_an_id_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    mine, parent = restarts.launch(), os.getppid()
    monkeypatch.setattr(os, "getppid", lambda: parent + 1)
    assert mine is not None and restarts.launch() != mine


def test_without_a_launcher_there_is_no_launch(
    arguments: RunArguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    begun(tmp_path, None, CHECKPOINT)
    restarts.go_on(arguments)
    assert not arguments.resume
