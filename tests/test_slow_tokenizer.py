"""Tokenizers published as vocabulary and merges, such as Dream's, against transformers' Qwen2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from llada_plugins.engine.engine import Engine
from llada_plugins.models.folder import TINY, read_config, special_tokens
from llada_plugins.models.loading import save_model
from llada_plugins.models.tokenizer import load_tokenizer

TRAINED_ON = [
    "It's a test, isn't it? We'll see 1234 numbers and they've CAPITALS.",
    "def f(x):\n    return x + 1\n\n\nprint(f(41))   # comment",
    "Übergrößenträger, naïve café, 你好世界, Привет мир, 🙂🙂",
]
TEXTS = [
    *TRAINED_ON,
    "",
    " ",
    "   leading and trailing   ",
    "tabs\tand\r\nline ends\n\n \n",
    "I'LL don't 'S 3.14159 $5,000!!",
    "cafe\u0301 is NFC's caf\u00e9",
    "<|mask|>between<|im_start|>user\nhi<|im_end|>",
    "unknown \u0e17\u0e14\u0e2a\u0e2d\u0e1a \U0001f9ea",
]
ADDED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tokenizer in the layout of a Dream: no tokenizer.json, a class of remote code."""
    folder = tmp_path_factory.mktemp("slow")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINED_ON * 3, trainer)
    tokenizer.model.save(str(folder))
    size = tokenizer.get_vocab_size()
    decoder = {
        str(size + number): dict(
            content=content,
            lstrip=False,
            normalized=False,
            rstrip=False,
            single_word=False,
            special=True,
        )
        for number, content in enumerate(ADDED)
    }
    settings = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "bos_token": "<|beginoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
        "chat_template": TEMPLATE,
        "model_max_length": 131072,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "tokenization_dream.py").write_text("raise SystemExit('remote code ran')\n")
    return folder


@pytest.fixture
def own(folder, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(folder, tmp_path / "own"))


def edit(folder: Path, **settings) -> None:
    path = folder / "tokenizer_config.json"
    said = {**json.loads(path.read_text()), **settings}
    path.write_text(json.dumps({name: value for name, value in said.items() if value is not None}))


def test_ids_and_texts_are_those_of_transformers_qwen2(folder, own):
    from transformers import Qwen2Tokenizer

    edit(own, tokenizer_class="Qwen2Tokenizer", auto_map=None)
    oracle, ours = Qwen2Tokenizer.from_pretrained(own), load_tokenizer(folder)
    for text in TEXTS:
        ids = oracle.encode(text)
        assert ours.encode(text) == ids
        assert ours.decode(ids, clean_up_tokenization_spaces=False) == oracle.decode(
            ids, clean_up_tokenization_spaces=False
        )
    messages = [{"role": "user", "content": "hi"}]
    asked = dict(tokenize=False, add_generation_prompt=True)
    assert ours.apply_chat_template(messages, **asked) == oracle.apply_chat_template(
        messages, **asked
    )


def test_auto_tokenizer_gives_the_same_without_remote_code(own, golden, tmp_path):
    from transformers import AutoTokenizer

    import llada_plugins.hf  # noqa: F401  # registers

    shutil.copy(golden / "families" / "dream" / "checkpoint" / "config.json", own)
    ours, found = load_tokenizer(own), AutoTokenizer.from_pretrained(own, padding_side="left")
    assert found.padding_side == "left"
    found.save_pretrained(tmp_path / "saved")
    for tokenizer in (found, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        for text in TEXTS:
            assert tokenizer.encode(text) == ours.encode(text)
        assert (tokenizer.eos_token_id, tokenizer.mask_token) == (ours.eos_token_id, "<|mask|>")


def test_names_ids_and_place_are_as_the_files_say(folder):
    ours = load_tokenizer(folder)
    assert (ours.bos_token, ours.eos_token, ours.mask_token) == (
        "<|beginoftext|>",
        "<|endoftext|>",
        "<|mask|>",
    )
    size = len(json.loads((folder / "vocab.json").read_text()))
    assert [ours.convert_tokens_to_ids(each) for each in ADDED] == list(range(size, size + 5))
    assert ours.name_or_path == str(folder)
    assert not (folder / "tokenizer.json").exists()


def test_added_tokens_of_the_older_layout_are_read(folder, own):
    settings = json.loads((own / "tokenizer_config.json").read_text())
    ids = {each["content"]: int(n) for n, each in settings["added_tokens_decoder"].items()}
    (own / "added_tokens.json").write_text(json.dumps(ids))
    edit(own, added_tokens_decoder=None)
    for text in TEXTS:
        assert load_tokenizer(own).encode(text) == load_tokenizer(folder).encode(text)


def test_a_template_in_a_file_of_its_own_is_found(own):
    edit(own, chat_template=None)
    (own / "chat_template.jinja").write_text(TEMPLATE)
    assert load_tokenizer(own).chat_template == TEMPLATE


def gap(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    decoder = settings["added_tokens_decoder"]
    last = max(map(int, decoder))
    edit(folder, added_tokens_decoder={**decoder, str(last + 7): dict(content="<|far|>")})


def disagree(folder: Path) -> None:
    (folder / "added_tokens.json").write_text(json.dumps({"<|mask|>": 3}))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "another class": (
        lambda folder: edit(folder, tokenizer_class="GPT2Tokenizer"),
        "has no tokenizer.json, and tokenizer_class is 'GPT2Tokenizer': .* Qwen2Tokenizer",
    ),
    "merges of others": (
        lambda folder: (folder / "merges.txt").write_text("#version: 0.2\nzzz qqq\n"),
        "vocab.json and merges.txt do not belong together: ",
    ),
    "no JSON": (lambda folder: (folder / "vocab.json").write_text("{"), "vocab.json"),
    "an id twice": (
        lambda folder: (folder / "vocab.json").write_text('{"a": 0, "b": 0}'),
        "vocab.json.* every token has a number of its own",
    ),
    "ids with a gap": (gap, "its tokenizer's files give '<|far|>' the id"),
    "two ids": (disagree, "added_tokens.json and tokenizer_config.json disagree on the id of"),
    "a BOS that is not added": (
        lambda folder: edit(folder, add_bos_token=True),
        "tokenizer_config.json says add_bos_token=true, but ",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_files_end_in_one_line_that_names_the_folder(own, fault):
    damage, message = FAULTS[fault]
    damage(own)
    with pytest.raises(ValueError, match=message.replace("|", r"\|")) as caught:
        load_tokenizer(own)
    assert "\n" not in str(caught.value) and str(own) in str(caught.value)


@pytest.mark.parametrize(
    "absent, told",
    (
        (("merges.txt",), ", and of vocab.json and merges.txt only the first"),
        (("vocab.json",), ", and of merges.txt and vocab.json only the first"),
        (("merges.txt", "vocab.json"), ""),
    ),
    ids=("no merges", "no vocabulary", "neither"),
)
def test_a_folder_with_neither_form_says_what_it_lacks(own, absent, told):
    for name in absent:
        (own / name).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load_tokenizer(own)
    assert f"{own} has no tokenizer.json{told}: pass tokenizer=FOLDER" in str(caught.value)


# ---- in an engine


@pytest.fixture(scope="module")
def checkpoint(folder, make_model, tmp_path_factory) -> Path:
    """A random Dream with that tokenizer."""
    made = tmp_path_factory.mktemp("dream")
    shutil.copytree(folder, made, dirs_exist_ok=True)
    size = len(json.loads((folder / "vocab.json").read_text())) + len(ADDED)
    model = make_model(
        vocab_size=size,
        max_sequence_length=128,
        mask_token_id=size - 1,
        eos_token_id=size - 5,
        include_qkv_bias=True,
        rope_full_precision=False,
        n_kv_heads=2,
        family="dream",
    )
    save_model(model, made)
    return made


def test_special_tokens_come_from_a_slow_tokenizers_files(checkpoint):
    config = read_config(checkpoint)
    found = special_tokens(checkpoint, config)
    size = config.vocab_size
    assert (found.mask, found.eos, found.eot) == (size - 1, size - 5, size - 3)


def test_add_bos_token_puts_bos_before_prompts_and_contexts_once(checkpoint):
    plain = Engine(pretrained=str(checkpoint))
    with_bos = Engine(pretrained=str(checkpoint), add_bos_token=True)
    bos = plain.tokenizer.bos_token_id
    for text in ("It's", "", "<|beginoftext|>It's"):
        ids = plain.encode(text)
        assert with_bos.encode(text) == (ids if ids[:1] == [bos] else [bos, *ids])
    for pair in (("It's a", " test"), ("It's a ", "test"), ("<|beginoftext|>a", "b")):
        context, answer = plain.encode_pair(*pair)
        found = with_bos.encode_pair(*pair)
        assert found == (context if context[:1] == [bos] else [bos, *context], answer)


def test_add_bos_token_without_a_bos_is_refused(checkpoint, tmp_path):
    own = Path(shutil.copytree(checkpoint, tmp_path / "own"))
    edit(own, bos_token=None)
    with pytest.raises(
        ValueError, match="add_bos_token=true, but the tokenizer in .* no bos_token"
    ):
        Engine(pretrained=str(own), add_bos_token=True)


def test_tasks_that_load_a_tokenizer_by_the_models_name_get_the_models(checkpoint):
    """Without the remote code that RULER and BABILong allow: it would end the process."""
    pytest.importorskip("lm_eval")
    from lm_eval.tasks.babilong.common_utils import get_tokenizer

    from llada_plugins.lmeval_models import LLaDA

    for name in (str(checkpoint), "sudoku4", "tiny"):
        model = LLaDA(pretrained=name, device="cpu", gen_length=8)
        tokenizer = get_tokenizer(pretrained=name)
        assert tokenizer.encode("1 .2") == model.tokenizer.encode("1 .2")
        tokenizer.model_max_length = 7
        assert model.tokenizer.model_max_length != 7
    LLaDA(pretrained=str(checkpoint), tokenizer="nim", device="cpu", gen_length=8)
    assert get_tokenizer(tokenizer="nim").encode("1")
    own = get_tokenizer(pretrained=str(TINY))  # which transformers can load by itself
    assert own.encode("1 .2") == model.tokenizer.encode("1 .2")
