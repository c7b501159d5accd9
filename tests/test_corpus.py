"""Pre-training data: what is tokenised, how it is found again, and where text may come from."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from llada_plugins.models.tokenizer import load_tokenizer
from training import pretrain
from training.data import corpus
from training.data.byte_tokenizer import EOS, byte_tokenizer
from training.data.corpus import Rows, find, tokenise
from training.data.hub import Hub


@pytest.fixture
def bytes_tokenizer(tmp_path):
    byte_tokenizer(tmp_path / "bytes")
    return load_tokenizer(tmp_path / "bytes")


def tokens_of(path, tokenizer, cache: Path, seq_len: int = 5, limit: int | None = None) -> Rows:
    eos = tokenizer.eos_token_id
    return Rows(
        tokenise(find(str(path), None, None), tokenizer, len(tokenizer), eos, cache), seq_len, limit
    )


def test_rows_are_the_documents_joined_by_eos_and_cut_anywhere(tmp_path, bytes_tokenizer):
    eos = bytes_tokenizer.eos_token_id
    (tmp_path / "data.jsonl").write_text(
        '{"text": "héllo", "url": "x"}\n\n{"input_ids": [5, 6]}\n{"text": "ab"}\n', encoding="utf-8"
    )
    found = tokens_of(tmp_path / "data.jsonl", bytes_tokenizer, tmp_path / "cache")
    expected = [
        *bytes_tokenizer("héllo")["input_ids"],
        eos,
        5,
        6,
        eos,
        *bytes_tokenizer("ab")["input_ids"],
        eos,
    ]
    assert list(found) == [expected[first : first + 5] for first in range(0, len(expected), 5)]
    assert found.bytes_per_token is None


@pytest.mark.parametrize("second", ['{"text": "a<|mdm_mask|>"}', '{"input_ids": [5, 258]}'])
def test_a_document_with_the_mask_token_is_refused(tmp_path, bytes_tokenizer, second):
    (tmp_path / "data.jsonl").write_text('{"text": "one"}\n' + second + "\n")
    source, size = find(str(tmp_path / "data.jsonl"), None, None), len(bytes_tokenizer)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"data.jsonl: document 2 holds the mask token"):
            tokenise(source, bytes_tokenizer, size, 257, tmp_path / "cache", 258)
    assert not list((tmp_path / "cache").iterdir())


def test_pretraining_knows_the_mask_that_no_document_may_hold(tmp_path):
    (tmp_path / "data.txt").write_text("one <|mdm_mask|>")
    command = ["--model", "tiny", "--dataset", str(tmp_path / "data.txt"), "--max_steps", "1"]
    with pytest.raises(SystemExit) as info:
        pretrain.main([*command, "--use_cpu", "--output_dir", str(tmp_path / "out")])
    assert "data.txt: document 1 holds the mask token" in str(info.value)


def test_a_text_file_is_one_document_in_which_eos_may_be_spelt_out(
    tmp_path, bytes_tokenizer, monkeypatch
):
    monkeypatch.setattr(corpus, "PIECE", 4)
    text = "one\r\ntwo\n\nthree" + EOS + "\nfour é"
    (tmp_path / "a.txt").write_bytes(text.encode())
    found = tokens_of(tmp_path / "a.txt", bytes_tokenizer, tmp_path / "cache", seq_len=1000)
    assert found[0] == bytes_tokenizer(text)["input_ids"] + [bytes_tokenizer.eos_token_id]
    assert found.bytes_per_token == len(text.encode()) / len(found[0])


def test_a_byte_order_mark_is_no_text(tmp_path, bytes_tokenizer):
    for name, text in {"a.txt": "ab", "a.jsonl": '{"text": "ab"}'}.items():
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert list(tokens_of(tmp_path / name, bytes_tokenizer, tmp_path / "cache")) == [
            [*bytes_tokenizer("ab")["input_ids"], bytes_tokenizer.eos_token_id]
        ]


def test_a_limit_takes_rows_evenly_spread(tmp_path, bytes_tokenizer):
    (tmp_path / "a.txt").write_text("".join(map(chr, range(33, 73))))
    whole, some = (
        tokens_of(tmp_path / "a.txt", bytes_tokenizer, tmp_path / "cache", limit=limit)
        for limit in (None, 3)
    )
    assert len(whole) == 9 and list(some) == [whole[n] for n in (0, 3, 6)]


def test_what_is_tokenised_is_found_again_by_content(tmp_path, bytes_tokenizer, monkeypatch):
    (tmp_path / "a.txt").write_text("some text")
    first = tokens_of(tmp_path / "a.txt", bytes_tokenizer, tmp_path / "cache")
    (tmp_path / "b.txt").write_text("some text")
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "_encoded", None)  # would fail if it were tokenised again
        assert (
            tokens_of(tmp_path / "b.txt", bytes_tokenizer, tmp_path / "cache", seq_len=3).key
            == first.key
        )
    (tmp_path / "b.txt").write_text("same text")
    assert tokens_of(tmp_path / "b.txt", bytes_tokenizer, tmp_path / "cache").key != first.key
    bytes_tokenizer.add_tokens(["some"])
    assert tokens_of(tmp_path / "a.txt", bytes_tokenizer, tmp_path / "cache").key != first.key


def test_text_is_never_in_memory_as_a_whole(tmp_path, bytes_tokenizer, monkeypatch):
    monkeypatch.setattr(corpus, "BATCH", 5000)
    source = corpus.Source("pieces", lambda: "digest", lambda: ("x" * 1000 for _ in range(3000)))
    tracemalloc.start()
    tokenise(source, bytes_tokenizer, len(bytes_tokenizer), 257, tmp_path / "cache")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_500_000  # of 3 MB of text; as a list of ids it would be 24 MB
    (folder,) = (tmp_path / "cache").iterdir()
    assert len(np.memmap(folder / "tokens.bin", "uint16", "r")) == 3_000_000


def test_splits_of_a_folder_are_found_by_name(tmp_path):
    for name in ("wiki.train-00000.txt", "wiki.train-00001.txt", "wiki.valid.txt", "trained.txt"):
        (tmp_path / name).write_text(name)
    assert find(str(tmp_path), None, "train").name.split(", ") == [
        str(tmp_path / f"wiki.train-0000{n}.txt") for n in (0, 1)
    ]
    assert (
        find(str(tmp_path), None, None).name
        == find(str(tmp_path), None, "validation").name
        == str(tmp_path / "wiki.valid.txt")
    )
    with pytest.raises(
        FileNotFoundError, match="no file for the split test, but trained.txt, wiki.train-00000.txt"
    ):
        find(str(tmp_path), None, "test")


@pytest.mark.parametrize(
    "name, expected",
    [
        ("wikitext2", ["= A =\n", "", "text\n", None]),
        ("someone/data", ["= A =\n", None, "", None, "text\n", None]),
    ],
)
def test_a_hub_data_set_is_read_as_documents_or_as_one_text(monkeypatch, name, expected):
    import datasets

    asked = []

    def load_dataset(*key):
        asked.append(key)
        split = datasets.Dataset.from_dict({"text": ["= A =\n", "", "text\n"]})
        return datasets.DatasetDict(train=split, test=split.select([0]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(find(name, None, "train").pieces()) == expected
    assert find(name, None, None).name.endswith(" test")
    assert find(name, None, None).digest() != find(name, None, "train").digest()
    assert asked[0] == (corpus.NAMES[name] if name in corpus.NAMES else Hub(name))[:2]
    with pytest.raises(ValueError, match="has no split dev, but train, test"):
        find(name, None, "dev")
