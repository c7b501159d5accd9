"""What tests of training share: a small model, rows for it, and the flags of a short run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from llada_plugins.models.initial import initialise
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.llada_config import LLaDAConfig
from llada_plugins.tasks import sudoku
from tests.llada_shape import LLADA
from training.data.examples import Example

VOCAB, MASK_ID, EOS_ID = 12, 10, 11
ORDINARY = 10  # ids below it are neither mask nor EOS


def small_config(layers: int = 2, **fields: Any) -> LLaDAConfig:
    """The shape of `small_model`; fields: further ones of LLaDAConfig."""
    return LLaDAConfig(
        **fields,
        d_model=16,
        n_heads=2,
        n_layers=layers,
        vocab_size=VOCAB,
        mlp_hidden_size=24,
        **LLADA,
        mask_token_id=MASK_ID,
        eos_token_id=EOS_ID,
    )


def small_model(layers: int = 2, seed: int = 0, **fields: Any) -> LLaDA:
    """A random model, ready for training."""
    model = LLaDA(small_config(layers, **fields))
    initialise(model, torch.Generator().manual_seed(seed))
    return model


def examples(num: int, seed: int = 0) -> list[Example]:
    """Rows of 2-4 prompt tokens and 1-6 answer tokens, none of them mask or EOS."""
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(2, 5, (num,), generator=generator).tolist()
    answers = torch.randint(1, 7, (num,), generator=generator).tolist()
    return [
        Example(torch.randint(0, ORDINARY, (p + a,), generator=generator).tolist(), p)
        for p, a in zip(prompts, answers)
    ]


def write_sudokus(path: Path, number: int) -> Path:
    """A JSONL file of so many sudokus as prompt and completion."""
    rows = [
        {"prompt": puzzle, "completion": solution}
        for puzzle, solution in sudoku.problems("train", number)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flags(**given: object) -> list[str]:
    """The words of a command line, --name value; True is a flag alone, None none.

    A list is a flag with several values.
    """
    words: list[str] = []
    for name, value in given.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def short_run(**given: object) -> list[str]:
    """Flags of a run on one CPU thread that logs every update and saves no checkpoint.

    given: further flags, or other values of these.
    """
    common = dict(
        per_device_train_batch_size=4,
        logging_steps=1,
        num_threads=1,
        use_cpu=True,
        save_strategy="no",
    )
    return flags(**{**common, **given})


def with_other_tokens(checkpoint: Path, target: Path) -> Path:
    """A copy of a checkpoint in whose tokenizer two tokens have each other's id."""
    shutil.copytree(checkpoint, target)
    described = json.loads((target / "tokenizer.json").read_text())
    ids = described["model"]["vocab"]
    first, second = list(ids)[:2]
    ids[first], ids[second] = ids[second], ids[first]
    (target / "tokenizer.json").write_text(json.dumps(described))
    return target
