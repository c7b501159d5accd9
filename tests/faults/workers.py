"""A worker without memory, and a process reward model that cannot score one question."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from llada_plugins.models.folder import TINY
from llada_plugins.rewards import process_reward_model
from llada_plugins.tasks import sudoku

from .runs import (
    BATCH,
    QUESTIONS,
    Fault,
    Run,
    Setting,
    compare,
    finish,
    last_line,
    refused,
    undisturbed,
)

LIMITS = (8, 24, 48)  # MB beyond what the harnesses take when they are imported


def out_of_memory(harness: str) -> Callable[[Setting], str]:
    """Runs that may take ever more memory: all answers, or none of the exit statuses is 0."""

    def fault(setting: Setting) -> str:
        expected = undisturbed(Run(harness, "llada", setting.folder / "whole")).answers
        failed = 0
        for limit in LIMITS:
            run = Run(harness, "llada", setting.folder / f"run{limit}", memory=limit << 20)
            if not finish(run):
                compare(run, expected)
                continue
            failed += 1
            if finish(run._replace(memory=None)):
                raise Fault(f"with memory again it fails: {last_line(run)}")
            compare(run, expected)
        if not failed:
            raise Fault(f"{LIMITS[0]} MB were enough: nothing was tried")
        return f"{failed} of {len(LIMITS)} limits end it, and repeated it has all answers"

    return fault


def unscored(harness: str) -> Callable[[Setting], str]:
    """A reward model that gives no number for one question of many."""

    def fault(setting: Setting) -> str:
        whole = undisturbed(Run(harness, "llada_prm", setting.folder / "whole"))
        number = setting.choose.randrange(QUESTIONS)
        prm = with_token(sudoku.problems("test", QUESTIONS, 0)[number].puzzle, setting.folder)
        run = Run(
            harness,
            "llada_prm",
            setting.folder / "run",
            dict(prm=str(prm)),
            spoil=no_number_for_last_token,
        )
        said = refused(run, "requests have no answer, all others have")
        # OpenCompass hands over a batch at a time, and stops at the first that fails
        answered = QUESTIONS if harness == "lm_eval" else (number // BATCH + 1) * BATCH
        if run.on_disk() != answered - 1:
            raise Fault(f"{run.on_disk()} of {answered - 1} answers are on the disk: {said}")
        if lost := set(run.kept()) - set(whole.answers):
            raise Fault(f"{len(lost)} of the others are answered otherwise")
        return f"{answered - 1} others are answered: {said[:90]}"

    return fault


def with_token(question: str, folder: Path) -> Path:
    """The tiny reward model, which reads this question as one token of its own, the last one."""
    prm = Path(shutil.copytree(TINY / "prm", folder / "prm"))
    config = json.loads((prm / "config.json").read_text())
    tokenizer = json.loads((prm / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    tokenizer["added_tokens"].append({"id": config["vocab_size"], "content": question, **flags})
    config["vocab_size"] += 1
    weights = load_file(prm / "model.safetensors")
    [name] = (each for each in weights if each.endswith("embed_tokens.weight"))
    weights[name] = torch.cat([weights[name], weights[name][:1]])
    save_file(weights, prm / "model.safetensors", {"format": "pt"})
    (prm / "config.json").write_text(json.dumps(config))
    (prm / "tokenizer.json").write_text(json.dumps(tokenizer))
    return prm


def no_number_for_last_token() -> None:
    """Reward models of this process give NaN where their last token is read.

    Weights are damaged after they are loaded: a file with NaN is refused.
    """
    load = process_reward_model._load_model

    def damaged(*arguments: Any, **options: Any) -> Any:
        model = load(*arguments, **options)
        with torch.no_grad():
            model.model.get_input_embeddings().weight[-1] = math.nan
        return model

    process_reward_model._load_model = damaged


FAULTS: dict[str, Callable[[Setting], str]] = {
    "out of memory, lm_eval": out_of_memory("lm_eval"),
    "out of memory, opencompass": out_of_memory("opencompass"),
    "a question without a reward, lm_eval": unscored("lm_eval"),
    "a question without a reward, opencompass": unscored("opencompass"),
}
