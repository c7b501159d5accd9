"""Converters: every row of a public file becomes a training row or a reported skip, and nothing is left half-written."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from training import convert
from training.data import Vocabulary, read_jsonl

SHARED = Path(__file__).parents[2] / "shared" / "data"
BYTES = Vocabulary(lambda text: list(text.encode()), 258, 1 << 20, 257)
FILES = {        # format, file, rows, prompt field, completion field
    "s1k": ("s1k", "s1k/s1k_problem_solution.json", 1000, "problem", "solution"),
    "gsm8k-train": ("gsm8k", "gsm8k/train.jsonl", 7473, "question", "answer"),
    "gsm8k-test": ("gsm8k", "gsm8k/test.jsonl", 1319, "question", "answer"),
    "math500": ("math500", "math500/test.jsonl", 500, "problem", "solution"),
}
GOOD = {"question": "1 + 1?", "answer": "2\n#### 2"}


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.mark.parametrize("case", FILES)
def test_a_public_file_is_converted_row_by_row(tmp_path, capsys, case):
    name, file, num_rows, prompt, completion = FILES[case]
    source = SHARED / file
    if not source.is_file():
        pytest.skip(f"{file} is not at hand")
    convert.main(["--format", name, "--input", str(source), "--output", str(tmp_path / "rows.jsonl")])
    raw = [row for _, row in convert.read_rows(source)]
    rows = read(tmp_path / "rows.jsonl")
    reported = capsys.readouterr()
    num_skipped = reported.err.count("skipped ")
    assert len(raw) == num_rows == len(rows) + num_skipped
    assert f"{len(rows)} rows of {num_rows}, {num_skipped} skipped" in reported.out
    whole = [{"prompt": row[prompt], "completion": row[completion]} for row in raw if row[prompt].strip() and row[completion].strip()]
    assert rows == whole
    assert len(read_jsonl(tmp_path / "rows.jsonl", BYTES, append_eos=True)) == len(rows)


@pytest.mark.parametrize("name, row", [
    ("s1k", {"problem": "p", "solution": "s", "thinking": ""}), ("math500", {"problem": "p", "solution": "s", "level": 3}),
    ("gsm8k", {"question": "p", "answer": "s"}), ("opc", {"instruction": "p", "output": "s", "code": "c"}),
])
def test_every_format_makes_prompt_and_completion(tmp_path, name, row):
    for text in (json.dumps([row, row]), json.dumps(row) + "\n\n" + json.dumps(row) + "\n"):
        (tmp_path / "in").write_text(text)
        assert convert.convert(tmp_path / "in", name) == ([("p", "s"), ("p", "s")], [])


def test_text_is_kept_as_it_is(tmp_path):
    text = " é \u2028 \\frac{1}{2} <<1+1=2>> \n"
    (tmp_path / "in.jsonl").write_text(json.dumps({"question": text, "answer": text}, ensure_ascii=False), encoding="utf-8")
    convert.main(["--format", "gsm8k", "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")])
    assert read(tmp_path / "out.jsonl") == [{"prompt": text, "completion": text}]


BAD = {
    "{not json": "not JSON: Expecting property name",
    "3": "expected an object, found int",
    '{"question": "a"}': "'answer' must be text, found keys question",
    '{"question": 1, "answer": "b"}': "'question' must be text, found int",
    '{"question": "a", "answer": " "}': "'answer' is empty",
}


def test_bad_rows_are_skipped_with_file_line_and_reason_and_the_rest_is_kept(tmp_path, capsys):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join([json.dumps(GOOD), *BAD, json.dumps(GOOD)]) + "\n")
    convert.main(["--format", "gsm8k", "--input", str(source), "--output", str(out)])
    reported = capsys.readouterr()
    for number, reason in enumerate(BAD.values(), 2):
        assert f"skipped {source}:{number}: {reason}" in reported.err
    assert f"{out}: 2 rows of 7, 5 skipped" in reported.out and len(read(out)) == 2


@pytest.mark.parametrize("line", BAD)
def test_strict_ends_at_the_first_bad_row_and_writes_nothing(tmp_path, line):
    source, out = tmp_path / "in.jsonl", tmp_path / "sub" / "out.jsonl"
    source.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(SystemExit) as exit_info:
        convert.main(["--format", "gsm8k", "--input", str(source), "--output", str(out), "--strict"])
    assert str(exit_info.value.code).startswith(f"error: {source}:2: {BAD[line]}") and "\n" not in str(exit_info.value.code)
    assert not out.parent.exists()


@pytest.mark.parametrize("content, message", [
    (None, "no such file"),
    (b"", "no row fits --format gsm8k"),
    (b"[1, 2", ":1: not a JSON array"),
    (b'{"problem": "a", "solution": "b"}', "no row fits --format gsm8k (first: "),
    (b"PAR1\xff\xfe", "not UTF-8 text"),
])
def test_a_file_that_cannot_be_converted_is_refused_in_one_line(tmp_path, content, message):
    source, out = tmp_path / "in", tmp_path / "out.jsonl"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(SystemExit) as exit_info:
        convert.main(["--format", "gsm8k", "--input", str(source), "--output", str(out)])
    text = str(exit_info.value.code)
    assert text.startswith("error: ") and message in text and "\n" not in text
    assert not out.exists()


def test_an_existing_output_is_not_overwritten(tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps(GOOD))
    (tmp_path / "out.jsonl").write_text("mine")
    with pytest.raises(SystemExit, match="exists"):
        convert.main(["--format", "gsm8k", "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")])
    assert (tmp_path / "out.jsonl").read_text() == "mine"


def test_a_write_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        convert.write_rows([convert.Row("a", "b"), convert.Row("\ud800", "b")], tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []
