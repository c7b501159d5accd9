"""The manifest of a run of lm-eval: in its results file, and in a file beside it.

lm-eval tells a model neither what it was asked nor where results go. Both stand in the
frame of `simple_evaluate`, under the names that 0.4.10 to 0.4.13 give them; what is not
found there is left out.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llada_plugins.provenance.manifest import Recorder, write_manifest
from llada_plugins.provenance.origins import names_after, of_requests, option_origins

from .frames import callers
from .lmeval_trajectories import samples_folder

ASKED = (
    "num_fewshot",
    "limit",
    "samples",
    "gen_kwargs",
    "apply_chat_template",
    "system_instruction",
    "fewshot_as_multiturn",
)
SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
# flags of services that get results too
SECRET = ("--hf_hub_log_args", "--wandb_args", "--wandb_config_args", "--trackio_args")
OF_HARNESS = ("batch_size", "device")  # flags of lm-eval that are options of the model


def manifest(recorder: Recorder, info: Mapping[str, Any]) -> dict[str, Any]:
    """For the `config` of the results: {"manifest": …}; also written beside the results file.

    info: what else stands in that config. {} where no manifest is wanted.
    """
    if not recorder.wanted:
        return {}
    frame = evaluation()
    run = {name: frame.get(name) for name in ASKED}
    results = frame.get("results") or {}
    run["tasks"] = sorted(results.get("results", {}))
    run["seeds"] = {name: frame.get(name) for name in SEEDS}
    options = option_origins(recorder.engine, _told(recorder))
    found = recorder.manifest("lm-eval", options, run)
    samplers = info.get("samplers", {})
    line = names_after(sys.argv, "--gen_kwargs")
    found["options_of_requests"] = of_requests(recorder.engine, samplers, line)
    found["command"] = command()
    found["decoding"] = info.get("decoding", {})
    found["results"] = numbers(results)
    found["answers"] = answers_digest(results)
    if folder := samples_folder():
        write_manifest(folder / f"manifest_{found['id']}.json", found)
    return {"manifest": found}


def command() -> list[str]:
    """The words of the command line, without those that may hold keys of services.

    lm_eval's own program stands there by its name alone.
    """
    program = Path(sys.argv[0])
    stock = "lm_eval" in (program.parent.name, program.name) or program.name == "lm-eval"
    words, secret = ["lm_eval" if stock else sys.argv[0]], False
    for word in sys.argv[1:]:
        flag = word.partition("=")[0]
        if word.startswith("-"):
            secret = flag in SECRET
        if not secret:
            words.append(word)
    return words


def numbers(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The metrics of each task in a result of lm-eval."""
    return {
        task: {
            name: value
            for name, value in metrics.items()
            if isinstance(value, float | int) and "," in name
        }
        for task, metrics in results.get("results", {}).items()
    }


def answers_digest(results: Mapping[str, Any]) -> dict[str, str]:
    """Of each task whose samples were logged, a digest of all answers by their questions."""
    found = {}
    for task, samples in (results.get("samples") or {}).items():
        answers = sorted((str(each["doc_id"]), str(each["resps"])) for each in samples)
        found[task] = hashlib.sha256(json.dumps(answers).encode()).hexdigest()
    return found


def _told(recorder: Recorder) -> dict[str, str]:
    """Where each explicit option stands."""
    on_line = names_after(sys.argv, "--model_args", "-a")
    by_file = any(word.partition("=")[0] in ("--config", "-C") for word in sys.argv)
    elsewhere = "config file" if by_file else "given"
    flags = {word.partition("=")[0].lstrip("-") for word in sys.argv if word.startswith("--")}
    told = {}
    for name in recorder.engine.asked.explicit:
        if name in OF_HARNESS:
            told[name] = "command line" if name in flags else "lm-eval's default"
        else:
            told[name] = "command line" if name in on_line else elsewhere
    return told


def evaluation() -> Mapping[str, Any]:
    """The variables of the running `simple_evaluate`; {} where none runs."""
    running = (frame for frame in callers() if frame.f_code.co_name == "simple_evaluate")
    return next((frame.f_locals for frame in running), {})
