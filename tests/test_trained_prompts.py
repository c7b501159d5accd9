"""Prompts of training rows are the token ids that evaluation makes of the same prompts."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors

from llada_plugins.engine.engine import Engine
from training import data
from training.data.byte_tokenizer import BOS, EOS

PIECES = [
    "a",
    "B",
    " ",
    "\n",
    "\t",
    "7",
    "é",
    "\ufeff",
    "\0",
    "🙂",
    "<",
    "|>",
    EOS,
    BOS,
    "<|eot_id|>",
]
WITHOUT_BOS = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
)


@pytest.fixture(
    scope="module", params=["adds nothing", "adds BOS", "adds BOS, template without it", "adds EOS"]
)
def folder(request, tiny_checkpoint, tmp_path_factory) -> Path:
    """A checkpoint whose tokenizer puts such special tokens round a text."""
    folder = tmp_path_factory.mktemp("tokenizer") / "model"
    shutil.copytree(tiny_checkpoint, folder)
    if request.param == "adds nothing":
        return folder
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    name, token = ("eos", EOS) if "EOS" in request.param else ("bos", BOS)
    number = tokenizer.token_to_id(token)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A" if name == "bos" else f"$A {token}", special_tokens=[(token, number)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    path = folder / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), f"add_{name}_token": True}
    if "template" in request.param:
        settings["chat_template"] = WITHOUT_BOS
    path.write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def engine(folder) -> Engine:
    return Engine(pretrained=str(folder), device="cpu")


@pytest.fixture(scope="module")
def words(engine, folder) -> data.Vocabulary:
    config = engine.model.config
    return data.vocabulary(folder, config.vocab_size, 10_000, engine.special.eos)


def texts(number: int) -> list[str]:
    draw = random.Random(0)
    return ["", *("".join(draw.choices(PIECES, k=draw.randrange(1, 12))) for _ in range(number))]


def read(path: Path, words: data.Vocabulary, rows: list[dict]) -> list[data.Example]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(data.read_jsonl(path, words, append_eos=True))


def test_a_prompt_is_trained_on_as_it_is_evaluated(tmp_path, engine, words):
    prompts = texts(100)
    rows = [{"prompt": prompt, "completion": "answer"} for prompt in prompts]
    answer = engine.tokenizer("answer", add_special_tokens=False)["input_ids"]
    for prompt, example in zip(prompts, read(tmp_path / "data.jsonl", words, rows), strict=True):
        expected = engine.encode(prompt)
        assert example.prompt_length == len(expected)
        assert example.input_ids == [*expected, *answer, engine.special.eos]


def test_a_chat_is_trained_on_as_it_is_evaluated(tmp_path, engine, words):
    asked = [[{"role": "user", "content": text}] for text in texts(50) if text.strip()]
    said = {"role": "assistant", "content": "answer"}
    examples = read(
        tmp_path / "data.jsonl", words, [{"messages": [*turns, said]} for turns in asked]
    )
    for turns, example in zip(asked, examples, strict=True):
        expected = engine.encode(engine.render_chat(turns))
        assert example.input_ids[: example.prompt_length] == expected
