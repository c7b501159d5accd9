"""Slurm's scripts, with stand-ins for its commands: what they start is what runs here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "configs" / "slurm"
STAND_INS = {
    "scontrol": '#!/bin/sh\nprintf "%s\\n" localhost other\n',
    # notes the command, and runs it as the only machine of the job
    "srun": '#!/bin/sh\necho "$@" > "$NOTED"\nexec "$@"\n',
    "torchrun": f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n',
}


def submit(script: str, words: list[str], tmp_path: Path) -> tuple[str, str]:
    """What srun was asked to run, and what the job printed."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, text in STAND_INS.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "NOTED": str(tmp_path / "noted"),
        "SLURM_JOB_NODELIST": "machine[1-2]",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_ID": "77",
        "SLURM_GPUS_ON_NODE": "2",
    }
    done = subprocess.run(
        ["bash", str(SCRIPTS / script), *words],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return (tmp_path / "noted").read_text(), done.stdout + done.stderr


@pytest.mark.slow
def test_lm_eval_runs_in_a_process_for_each_gpu(tmp_path: Path) -> None:
    words = "--model llada --tasks sudoku4 --include_path configs/lmeval --limit 2 --device cpu"
    noted, said = submit("lm_eval.sbatch", [*words.split(), "--gen_kwargs", "steps=4"], tmp_path)
    assert "--nproc_per_node 2" in noted and "--rdzv_endpoint localhost:29500" in noted
    assert "|sudoku4|" in said


@pytest.mark.slow
def test_a_training_job_that_is_queued_again_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = f"training.sft --preset sudoku4 --output_dir {out} --use_cpu --eval_strategy no"
    saving = "--save_strategy steps --save_steps 2 --max_steps"
    submit("train.sbatch", [*words.split(), *saving.split(), "2"], tmp_path)
    (out / "model.safetensors").unlink()  # as if it had been stopped before the end
    again = tmp_path / "again"
    again.mkdir()
    _, said = submit("train.sbatch", [*words.split(), *saving.split(), "4"], again)
    assert f"the run goes on from {out / 'checkpoint-2'}" in said
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").open()]
    assert max(steps) == 4


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.sbatch")))
def test_a_script_is_proper_shell(script: str) -> None:
    done = subprocess.run(["bash", "-n", str(SCRIPTS / script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
