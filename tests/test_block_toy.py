"""A block-causal model from scratch learns a task, and the methods decode it.

The task is to repeat some letters. 30 seconds of one CPU core; held-out rows.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from llada_plugins.engine.engine import Engine, Request
from llada_plugins.files.json_files import read_json
from llada_plugins.models.folder import read_config
from llada_plugins.models.initial import initialise
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.loading import save_model
from tests.family_checkpoints import rewrite, write_checkpoint
from tests.small_training import flags
from training import remask_sft, sft
from training.data.byte_tokenizer import EOS, MASK, byte_tokenizer

pytestmark = pytest.mark.slow

WIDTH = 4
LETTERS = "abcdef"
RUN: dict[str, object] = dict(
    per_device_train_batch_size=32,
    learning_rate=3e-3,
    warmup_steps=20,
    logging_steps=100,
    save_strategy="no",
    use_cpu=True,
    num_threads=1,
)


def rows(number: int, seed: int, lengths: tuple[int, int] = (3, 6)) -> list[dict[str, str]]:
    drawn = random.Random(seed)
    found = []
    for _ in range(number):
        letters = "".join(drawn.choice(LETTERS) for _ in range(drawn.randint(*lengths)))
        found.append({"prompt": f"{letters}>", "completion": letters})
    return found


def write_rows(path: Path, data: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in data))
    return path


HELD_OUT = rows(50, 1, (5, 6))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A small SDAR, trained from random weights."""
    base = tmp_path_factory.mktemp("toy")
    folder = write_checkpoint("sdar", base / "scratch")
    ids = byte_tokenizer(folder)
    tokens = dict(mask_token_id=ids[MASK], eos_token_id=ids[EOS], pad_token_id=ids[EOS])
    shape = dict(
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_hidden_layers=2,
        intermediate_size=128,
        vocab_size=max(ids.values()) + 1,
        max_position_embeddings=64,
        block_size=WIDTH,
    )
    rewrite(folder, **tokens, **shape)
    (folder / "model.safetensors").unlink()
    model = LLaDA(read_config(folder))
    initialise(model, torch.Generator().manual_seed(0))
    save_model(model, folder)
    data = write_rows(base / "data.jsonl", rows(4000, 0))
    given = dict(model=folder, data=data, output_dir=base / "out", max_steps=700)
    sft.main(flags(**given, **RUN))
    return base / "out"


def num_right(engine: Engine, options: Mapping[str, object] | None = None) -> tuple[int, int]:
    """Right answers to the held-out rows, and forwards of all."""
    sampler = engine.sampler_for(options or {})
    requests = [Request(row["prompt"], sampler) for row in HELD_OUT]
    found = dict(engine.generate(requests, batch_size=len(requests)))
    right = [found[number].text == row["completion"] for number, row in enumerate(HELD_OUT)]
    return sum(right), sum(each.num_forwards for each in found.values())


def test_it_answers_what_it_has_not_seen(trained):
    engine = Engine(pretrained=str(trained), device="cpu", gen_length=8)
    right, forwards = num_right(engine)
    assert right >= 48
    surer, fewer = num_right(engine, {"threshold": 0.9})
    assert surer >= 45 and fewer < forwards


def test_its_likelihoods_tell_right_from_wrong(trained):
    engine = Engine(
        pretrained=str(trained), device="cpu", mc_num=15, greedy_check=True, fill_block=True
    )
    pairs = []
    for row in HELD_OUT[:20]:
        for answer in (row["completion"], row["completion"][::-1]):
            prompt, ids = engine.encode_pair(row["prompt"], answer)
            pairs.append((prompt, [*ids, engine.special.eos]))  # as it was trained
    found = [each for _, each in sorted(engine.log_likelihood(pairs, batch_size=8))]
    assert all(each.stderr == 0 for each in found)  # blocks of 4: enumerated
    right, wrong = found[::2], found[1::2]
    assert sum(one.value > other.value for one, other in zip(right, wrong)) >= 19
    assert sum(bool(each.greedy) for each in right) >= 19
    assert sum(each.value for each in right) / 20 > -0.5


def test_a_policy_stream_learns_which_tokens_are_wrong_and_is_decoded_by(trained, tmp_path):
    data = write_rows(tmp_path / "data.jsonl", rows(2000, 2))
    held_out = write_rows(tmp_path / "held out.jsonl", HELD_OUT)
    out = tmp_path / "ups"
    given = dict(model=trained, data=data, eval_data=held_out, output_dir=out, max_steps=500)
    more = {**RUN, "learning_rate": 1e-3, "eval_strategy": "steps", "eval_steps": 500}
    remask_sft.main(flags(**given, **more, joint=True, r_incorrect=0.3))
    metrics = read_json(out / "ups_config.json")["training"]["metrics"]
    assert metrics["eval_ups_auc"] > 0.7  # measured: 0.80, where chance has 0.5
    engine = Engine("llada_ups", pretrained=str(out), device="cpu", gen_length=8)
    right, forwards = num_right(engine)
    assert right >= 44
    surer, fewer = num_right(engine, {"threshold": 0.9})
    assert surer >= 44 and fewer < forwards
