"""Process reward models that do not fit their files, their tokenizer or what they are
to score: refused in one line, never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from llada_plugins.models.tokenizer import load_tokenizer
from llada_plugins.rewards.process_reward_model import PRMConfig, load_prm
from tests.test_prm import (
    CHATML,
    PUBLISHED,
    SOLUTIONS,
    each_family,
    edit,
    edit_tensors,
    fresh,
    saved,
    scorer_of,
)
from training.data.byte_tokenizer import byte_tokenizer

Damage = Callable[[Path], object]


def nothing(folder: Path) -> None:
    pass


def without(tensor: str) -> Damage:
    return lambda folder: edit_tensors(folder, lambda state: state.pop(tensor))


def having(name: str, tensor: Tensor) -> Damage:
    return lambda folder: edit_tensors(folder, lambda state: state.update({name: tensor}))


def merge(folder: Path, left: str, right: str) -> None:
    """Teach the byte tokenizer a merge."""
    raw = json.loads((folder / "tokenizer.json").read_text())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    symbols = [tokenizer.encode(part, add_special_tokens=False).tokens[0] for part in (left, right)]
    raw["model"]["vocab"].update(
        {token["content"]: token["id"] for token in raw["added_tokens"]}, **{"".join(symbols): 280}
    )
    raw["model"]["merges"].append(symbols)
    (folder / "tokenizer.json").write_text(json.dumps(raw))


def shrink(folder: Path, size: int) -> None:
    """Cut the model's vocabulary."""
    edit(folder, vocab_size=size)
    tables = ("model.embed_tokens.weight", "lm_head.weight")
    edit_tensors(
        folder, lambda state: state.update({name: state[name][:size].clone() for name in tables})
    )


CHAT = {"prm_family": "chat"}
SHEPHERD = {"prm_family": "math_shepherd"}
TOKENS = {"prm_family": "token_classification"}
MISTAKES = {
    "not asked": (
        "chat",
        nothing,
        {"prm_family": None},
        "is a causal LM, .*: pass prm_family=math_shepherd .* or prm_family=chat",
    ),
    "random head": (
        "qwen",
        nothing,
        TOKENS,
        "prm_family='token_classification' contradicts .*: they are of qwen",
    ),
    "random head, says the config": (
        "qwen",
        lambda folder: edit(folder, architectures=["Qwen2ForTokenClassification"]),
        TOKENS,
        "prm_family='token_classification' contradicts .*: they are of qwen",
    ),
    "wrong family": (
        "token_classification",
        nothing,
        {"prm_family": "qwen"},
        "they are of token_classification",
    ),
    "wrong family of a causal LM": ("chat", nothing, TOKENS, "they are of math_shepherd or chat"),
    "no head": ("token_classification", without("score.weight"), {}, "missing score.weight"),
    "half a head": ("qwen", without("score.2.bias"), {}, "missing score.2.bias"),
    "no first layer": ("qwen", without("score.0.weight"), {}, "missing score.0.weight"),
    "one class": (
        "qwen",
        having("score.2.weight", torch.ones(1, 32)),
        {},
        r"score.2.weight is \[1, 32\], expected \[2, 32\]",
    ),
    "left over": ("chat", having("v_head.bias", torch.ones(1)), CHAT, "left over v_head.bias"),
    "no LM head": ("chat", without("lm_head.weight"), CHAT, "missing lm_head.weight"),
    "three labels": (
        "token_classification",
        lambda folder: edit(folder, id2label={"0": "a", "1": "b", "2": "c"}, label2id=None),
        {},
        r"has 3 labels \(id2label\)",
    ),
    "foreign": (
        "chat",
        lambda folder: edit(folder, architectures=["LLaDAModelLM"]),
        CHAT,
        r"is \['LLaDAModelLM'\], not that of",
    ),
    "no architecture": (
        "chat",
        lambda folder: edit(folder, architectures=None),
        CHAT,
        r"architectures is \[\], not that of",
    ),
    "not causal": (
        "token_classification",
        lambda folder: edit(folder, model_type="bert"),
        {},
        "model_type is 'bert', expected",
    ),
    "no separator": (
        "token_classification",
        lambda folder: edit(folder, step_separator=None),
        {},
        "has no step_separator: pass",
    ),
    "empty separator": (
        "token_classification",
        nothing,
        {"prm_separator": '""'},
        "prm_separator='' has no token",
    ),
    "bad quotes": (
        "token_classification",
        nothing,
        {"prm_separator": '"\\q"'},
        "is in double quotes but is not a JSON string",
    ),
    "marker of no token": (
        "math_shepherd",
        nothing,
        {**SHEPHERD, "prm_marker": "kи"},
        r"prm_marker='kи' must be one known token .* makes \['k', ",
    ),
    "candidate of no token": (
        "chat",
        nothing,
        {**CHAT, "prm_negative": "no"},
        r"prm_negative='no' must be one known token .* makes \['n', 'o'\]",
    ),
    "marker unknown": (
        "qwen",
        byte_tokenizer,
        {},
        "prm_marker='<extra_0>' must be one known token",
    ),
    "equal candidates": (
        "chat",
        nothing,
        {**CHAT, "prm_negative": "+"},
        r"prm_positive and prm_negative are both '\+'",
    ),
    "option of another family": (
        "qwen",
        nothing,
        {"prm_separator": "\n"},
        "prm_separator has no effect on a PRM of the qwen family",
    ),
    "no template": (
        "chat",
        lambda folder: edit(folder, "tokenizer_config.json", chat_template=None),
        CHAT,
        "no chat template",
    ),
    "template that looks back": (
        "chat",
        lambda folder: edit(
            folder, "tokenizer_config.json", chat_template="{{ messages | length }}" + CHATML
        ),
        CHAT,
        "chat template changes earlier turns",
    ),
    "marker merged": (
        "chat",
        lambda folder: merge(folder, "\n", "+"),
        CHAT,
        r"joins the marker '\+' with the text around it",
    ),
    "foreign tokenizer": (
        "chat",
        lambda folder: shrink(folder, 250),
        CHAT,
        "makes token 2[56][0-9], its model's vocabulary ends at 249",
    ),
    "context": (
        "chat",
        nothing,
        {**CHAT, "prm_max_length": 513},
        "prm_max_length=513 exceeds the PRM's context of 512 tokens",
    ),
    "pickle": (
        "chat",
        lambda folder: (folder / "model.safetensors").rename(folder / "model.bin"),
        CHAT,
        "only safetensors are read",
    ),
    "no tokenizer": (
        "chat",
        lambda folder: (folder / "tokenizer.json").unlink(),
        CHAT,
        "has no tokenizer.json: write one there",
    ),
    "no config": (
        "chat",
        lambda folder: (folder / "config.json").unlink(),
        CHAT,
        "has no config.json",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_prm_that_does_not_fit_is_refused_in_one_line_before_weights_are_read(
    fresh, monkeypatch, mistake
):
    name, damage, options, message = MISTAKES[mistake]
    damage(folder := fresh(name))
    monkeypatch.setattr(
        torch.nn.Module, "load_state_dict", lambda *_, **__: pytest.fail("weights were loaded")
    )
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load_prm(PRMConfig(prm=str(folder), **options), "cpu")
    assert "\n" not in str(error.value)


def test_no_prm_or_one_that_is_nowhere_is_refused():
    with pytest.raises(ValueError, match="llada_prm needs a process reward model: pass prm="):
        load_prm(PRMConfig(), "cpu")
    for absent in ("/no/such/folder", "folder", "./a/b", "nobody/nothing"):
        with pytest.raises(FileNotFoundError, match="no such folder"):
            load_prm(PRMConfig(prm=absent), "cpu")


BAD_SOLUTIONS = {
    "empty question": ((" \n", ["a"]), "solution 2 has an empty question"),
    "no steps": (("q", []), "solution 2 has no steps"),
    "empty step": (("q", ["a", " ", "b"]), "step 2 of the 3 of solution 2 is empty"),
    "too long": (
        ("q", ["a" * 200, "b" * 200]),
        "solution 2 has [0-9]+ tokens with its question, the PRM takes 256: lower gen_length",
    ),
}


@each_family
@pytest.mark.parametrize("bad", BAD_SOLUTIONS)
def test_a_solution_that_cannot_be_scored_is_refused_before_any_forward(saved, name, bad):
    scorer = scorer_of(saved[name], name, prm_max_length=256)
    scorer.model.register_forward_pre_hook(lambda *_: pytest.fail("a forward ran"))
    solution, message = BAD_SOLUTIONS[bad]
    with pytest.raises(ValueError, match=message) as error:
        scorer.score([("q", ["a"]), solution])
    assert "\n" not in str(error.value) and scorer.num_calls == 0


def test_a_token_beyond_the_models_vocabulary_is_refused_before_any_forward(fresh):
    shrink(folder := fresh("chat"), 263)  # every token but the last, ки
    scorer = scorer_of(folder, "chat")
    assert len(scorer.score(SOLUTIONS[:2])) == 2
    scorer.model.register_forward_pre_hook(lambda *_: pytest.fail("a forward ran"))
    with pytest.raises(
        ValueError, match="its tokenizer makes token 263, its model's vocabulary ends at 262"
    ):
        scorer.score(SOLUTIONS[1:3])


def test_an_infinite_logit_is_no_score_though_its_probability_is_a_number(fresh):
    scorer = scorer_of(fresh("token_classification"), "token_classification")
    scorer.model.score.bias.data = torch.tensor([-torch.inf, 0])
    with pytest.raises(RuntimeError, match="no number came out for solution [1-4]"):
        scorer.score(SOLUTIONS)


@each_family
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_give_no_number_are_an_error_that_names_the_model_and_the_solution(
    fresh, name, value
):
    folder = fresh(name)
    damaged = load_tokenizer(folder).convert_tokens_to_ids("Z")
    scorer = scorer_of(folder, name)
    scorer.model.model.get_input_embeddings().weight.data[damaged] = value
    assert len(scorer.score(SOLUTIONS[1:2])[0]) == 1  # without a Z nothing is wrong
    with pytest.raises(
        RuntimeError, match="no number came out for solution 2: the PRM's weights are damaged"
    ) as error:
        scorer.score([SOLUTIONS[1], ("y", ["a", "Z"])])
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    edit_tensors(folder, lambda state: state["model.embed_tokens.weight"][damaged].fill_(value))
    with pytest.raises(
        ValueError,
        match="model.safetensors: model.embed_tokens.weight holds NaN or infinity in float32",
    ):
        scorer_of(folder, name)
