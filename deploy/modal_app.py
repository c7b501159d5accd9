"""A checkpoint evaluated, or served in the playground, on a GPU that Modal lends (modal.com).

    modal run deploy/modal_app.py --tasks gsm8k --options pretrained=GSAI-ML/LLaDA-8B-Instruct
    modal deploy deploy/modal_app.py

Both need `pip install modal` and an account there, and cost money. The first runs lm_eval and
prints its scores; the files stay in the volume llada-results. The second serves the playground
at an address of Modal's, behind the name llada and the password of a secret:

    modal secret create llada-playground PLAYGROUND_PASSWORD=...

The tests import this file and run its functions on the machine that they are on. It was not
deployed, and its image was not built.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import modal

GPU = "A100-80GB"
HOURS = 3600  # seconds
RESULTS = "/results"
# the playground's model; LLaDA-8B in bfloat16 takes 16 GB
CHECKPOINT = {"pretrained": "GSAI-ML/LLaDA-8B-Instruct", "gen_length": 128, "block_length": 32}
NAME, PASSWORD = "llada", "PLAYGROUND_PASSWORD"

HERE = Path(__file__).resolve()
image = modal.Image.from_dockerfile(HERE.with_name("Dockerfile"), context_dir=HERE.parents[1])
volumes: dict[str | os.PathLike[str], Any] = {
    "/root/.cache/huggingface": modal.Volume.from_name("llada-huggingface", create_if_missing=True),
    RESULTS: modal.Volume.from_name("llada-results", create_if_missing=True),
}
app = modal.App("llada-plugins", image=image)
kept = ExitStack()  # what the playground needs while its container lives


@app.function(gpu=GPU, volumes=volumes, timeout=24 * HOURS)
def evaluate(
    tasks: str,
    options: str = "",
    model: str = "llada",
    batch_size: str = "auto",
    limit: int | None = None,
    results: str = RESULTS,
) -> dict[str, dict[str, Any]]:
    """The scores of lm_eval by task; tasks of configs/lmeval are known too.

    options: lm_eval's --model_args. RuntimeError where lm_eval fails; its words are in the log.
    """
    from llada_plugins.files.installation import shipped
    from llada_plugins.files.newest import newest

    words = ["--model", model, "--tasks", tasks, "--batch_size", batch_size]
    words += [
        "--include_path",
        str(shipped("configs") / "lmeval"),
        "--output_path",
        results,
        "--log_samples",
    ]
    words += ["--model_args", options] * bool(options) + ["--limit", str(limit)] * bool(limit)
    done = subprocess.run([sys.executable, "-m", "llada_plugins.cli", *words])
    if done.returncode:
        raise RuntimeError(f"lm_eval ended with status {done.returncode}; see its words above")
    written = newest(Path(results), "results_*.json")
    assert written is not None  # lm_eval writes one where it succeeds
    found: dict[str, dict[str, Any]] = json.loads(written.read_text(encoding="utf-8"))["results"]
    return found


@app.function(
    gpu=GPU,
    volumes=volumes,
    secrets=[modal.Secret.from_name("llada-playground")],
    max_containers=1,
    scaledown_window=300,
    timeout=HOURS,
)
@modal.concurrent(max_inputs=100)
@modal.asgi_app()
def playground() -> Any:
    """The playground, for those who know the password."""
    return protected(CHECKPOINT)


def protected(options: dict[str, Any]) -> Any:
    """The playground of these options as an ASGI application; ValueError without a password."""
    from llada_plugins.playground.serving import built, mounted

    password = os.environ.get(PASSWORD, "")
    if not password:
        raise ValueError(
            f"the playground has no password: modal secret create llada-playground {PASSWORD}=..."
        )
    page = kept.enter_context(built("llada", options))
    return mounted(page, NAME, password)


@app.local_entrypoint()
def main(
    tasks: str,
    options: str = "",
    model: str = "llada",
    batch_size: str = "auto",
    limit: int = 0,
) -> None:
    """Evaluate there, print the scores here; limit: questions of each task, 0 for all."""
    scores = evaluate.remote(tasks, options, model, batch_size, limit or None)
    print(json.dumps(scores, indent=1))
