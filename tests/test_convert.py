"""Converters: every row of a public file becomes a training row or a reported skip, and
nothing is left half-written.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llada_plugins.files import jsonl
from training import convert as command
from training.data.encoding import Vocabulary
from training.data.formats import Row, convert, read_rows
from training.data.rows import read_jsonl

BYTES = Vocabulary(*[lambda text: list(text.encode())] * 2, 258, 1 << 20, 257)
FILES = {  # format, file, prompt field, completion field
    "s1k": ("s1k", "s1k/s1k_problem_solution.json", "problem", "solution"),
    "gsm8k-train": ("gsm8k", "gsm8k/train.jsonl", "question", "answer"),
    "gsm8k-test": ("gsm8k", "gsm8k/test.jsonl", "question", "answer"),
    "math500": ("math500", "math500/test.jsonl", "problem", "solution"),
    "math": ("math", "math500", "problem", "solution"),  # a folder
}
DIALOGUES = {
    "sharegpt": "sharegpt/dummy_conversation.json",
    "preference": "llamafactory_demo/dpo_en_demo.json",
}
ALPACA = {
    "alpaca": "alpaca/alpaca_small_2000.json",
    "llamafactory": "llamafactory_demo/alpaca_en_demo.json",
}
ASK, SAY = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
ASKED, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
GOOD = {"question": "1 + 1?", "answer": "2\n#### 2"}


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def num_rows(source: Path) -> int:
    """Rows of a JSONL file, of a JSON list, or of all of these in a folder."""
    if source.is_dir():
        return sum(num_rows(path) for path in source.glob("*.json*"))
    text = source.read_text(encoding="utf-8")
    return (
        len(json.loads(text))
        if source.suffix == ".json"
        else len(text.removesuffix("\n").split("\n"))
    )


@pytest.mark.parametrize("case", FILES)
def test_a_public_file_is_converted_row_by_row(tmp_path, capsys, public, case):
    name, file, prompt, completion = FILES[case]
    source = public(file)
    command.main(
        ["--format", name, "--input", str(source), "--output", str(tmp_path / "rows.jsonl")]
    )
    raw = [row for _, row in read_rows(source)]
    rows = read(tmp_path / "rows.jsonl")
    reported = capsys.readouterr()
    num_skipped = reported.err.count("skipped ")
    assert len(raw) == num_rows(source) == len(rows) + num_skipped
    assert f"{len(rows)} rows of {len(raw)}, {num_skipped} skipped" in reported.out
    whole = [
        {"prompt": row[prompt], "completion": row[completion]}
        for row in raw
        if row[prompt].strip() and row[completion].strip()
    ]
    assert rows == whole
    assert len(read_jsonl(tmp_path / "rows.jsonl", BYTES, append_eos=True)) == len(rows)


@pytest.mark.parametrize("case", DIALOGUES)
def test_dialogues_keep_every_turn_and_each_answer_becomes_an_example(tmp_path, public, case):
    source = public(DIALOGUES[case])
    raw = json.loads(source.read_text(encoding="utf-8"))
    command.main(
        ["--format", "sharegpt", "--input", str(source), "--output", str(tmp_path / "rows.jsonl")]
    )
    turns = [row["conversations"] + ([row["chosen"]] if "chosen" in row else []) for row in raw]
    names = {"human": "user", "gpt": "assistant", "system": "system"}
    assert read(tmp_path / "rows.jsonl") == [
        {"messages": [{"role": names[turn["from"]], "content": turn["value"]} for turn in each]}
        for each in turns
    ]
    words = BYTES._replace(
        render=lambda messages: "".join(
            f"{message['role']}: {message['content']}\n" for message in messages
        )
    )
    examples = read_jsonl(tmp_path / "rows.jsonl", words, append_eos=True)
    assert len(examples) == sum(turn["from"] == "gpt" for each in turns for turn in each)


@pytest.mark.parametrize("case", ALPACA)
def test_an_alpaca_prompt_is_the_instruction_and_below_it_the_input(public, case):
    source = public(ALPACA[case])
    raw = json.loads(source.read_text(encoding="utf-8"))
    rows, skipped = convert(source, "alpaca")
    assert len(rows) + len(skipped) == len(raw) and not skipped
    for row, converted in zip(raw, rows):
        assert converted.prompt == (
            row["instruction"] + "\n\n" + row["input"] if row["input"] else row["instruction"]
        )
        assert converted.completion == row["output"]
    assert any(row["input"] for row in raw) and not all(row["input"] for row in raw)


@pytest.mark.parametrize(
    "name, row, messages",
    [
        (
            "sharegpt",
            {"id": "1", "conversations": [ASK, SAY, ASK, SAY]},
            [ASKED, SAID, ASKED, SAID],
        ),
        (
            "sharegpt",
            {
                "conversations": [
                    {"from": "user", "value": "q"},
                    {"from": "assistant", "value": "a"},
                    ASK,
                ]
            },
            [ASKED, SAID, ASKED],
        ),
        (
            "sharegpt",
            {"system": "s", "conversations": [ASK, SAY], "tools": ""},
            [{"role": "system", "content": "s"}, ASKED, SAID],
        ),
        ("sharegpt", {"conversations": [ASK], "chosen": SAY, "rejected": ASK}, [ASKED, SAID]),
        (
            "messages",
            {
                "messages": [{"role": "system", "content": "s"}, ASKED, {**SAID, "weight": 1}],
                "id": 3,
            },
            [{"role": "system", "content": "s"}, ASKED, SAID],
        ),
        (
            "messages",
            {
                "system": "s",
                "messages": [ASKED, {**SAID, "train": False}, ASKED],
                "chosen": {**SAID, "weight": 1},
                "rejected": SAID,
            },
            [{"role": "system", "content": "s"}, ASKED, {**SAID, "weight": 0}, ASKED, SAID],
        ),
        (
            "sharegpt",
            {
                "conversations": [
                    {**ASK, "weight": None},
                    {**SAY, "weight": 0.0},
                    ASK,
                    {**SAY, "weight": 1.0},
                ],
                "chosen": None,
            },
            [ASKED, {**SAID, "weight": 0}, ASKED, SAID],
        ),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, SAID]},
            [ASKED, SAID],
        ),
    ],
)
def test_dialogues_in_every_form_become_messages(tmp_path, name, row, messages):
    (tmp_path / "in.jsonl").write_text(json.dumps(row))
    assert convert(tmp_path / "in.jsonl", name) == ([(messages,)], [])


@pytest.mark.parametrize(
    "name, row, reason",
    [
        ("sharegpt", {"id": 1}, "expected a list of turns {'from', 'value'}, found NoneType"),
        (
            "sharegpt",
            {"conversations": []},
            "expected a list of turns {'from', 'value'}, found none",
        ),
        ("sharegpt", {"conversations": [ASK]}, "no turn is the assistant's, only user"),
        (
            "sharegpt",
            {"conversations": [SAY, ASK, SAY]},
            "turn 1 is the assistant's and answers nobody",
        ),
        ("sharegpt", {"conversations": [ASK, {"from": "gpt", "value": " "}]}, "turn 2 is empty"),
        (
            "sharegpt",
            {"conversations": [ASK, {"from": "observation", "value": "x"}]},
            "turn 2: 'from' must be one of system, user, human",
        ),
        (
            "sharegpt",
            {"conversations": [ASKED, SAID]},
            "turn 1 must have 'from' and 'value' as text, found keys role, content",
        ),
        (
            "sharegpt",
            {"conversations": [ASK, "a"]},
            "turn 2 must have 'from' and 'value' as text, found str",
        ),
        ("sharegpt", {"conversations": [ASK, SAY], "tools": "[]"}, "'tools' is not supported"),
        (
            "messages",
            {"messages": [ASKED, {"role": "assistant", "content": None}]},
            "turn 2 must have 'role' and 'content' as text",
        ),
        (
            "alpaca",
            {"instruction": "i", "output": "o", "history": [["q", "a"]]},
            "'history' is not supported",
        ),
        ("alpaca", {"instruction": "i", "output": "o", "system": "s"}, "'system' is not supported"),
        (
            "alpaca",
            {"instruction": "i", "output": "o", "weight": 0},
            "the row is marked not to be learned",
        ),
        (
            "messages",
            {"messages": [ASKED, {**SAID, "tool_calls": [{"id": 1}]}]},
            "turn 2: 'tool_calls' is not supported",
        ),
        (
            "messages",
            {"messages": [{"role": "system", "content": "s"}, ASKED, SAID], "system": "t"},
            "'system' stands beside a turn of the system",
        ),
        ("messages", {"messages": [ASKED, SAID], "images": ["x.png"]}, "'images' is not supported"),
        (
            "sharegpt",
            {"conversations": [ASK, {**SAY, "weight": 0}]},
            "every answer is marked not to be learned",
        ),
        (
            "alpaca",
            {"instruction": "i", "input": 3, "output": "o"},
            "'input' must be text, found int",
        ),
    ],
)
def test_a_row_without_a_learnable_answer_is_skipped_with_the_reason(tmp_path, name, row, reason):
    good = {
        "conversations": [ASK, SAY],
        "messages": [ASKED, SAID],
        "instruction": "i",
        "output": "o",
    }
    (tmp_path / "in.json").write_text(json.dumps([good, row]))
    rows, skipped = convert(tmp_path / "in.json", name)
    assert len(rows) == 1 and len(skipped) == 1
    assert skipped[0].place == f"{tmp_path / 'in.json'}: row 2"
    assert skipped[0].reason.startswith(reason)
    with pytest.raises(ValueError, match="in.json: row 2: "):
        convert(tmp_path / "in.json", name, strict=True)


def test_what_is_written_is_learned_as_the_input_says(tmp_path):
    """Of a public report: the answers of weight 1 and of train true, and no other."""
    row = {
        "conversations": [
            ASK,
            {"from": "gpt", "value": "Table.", "train": False},
            ASK,
            {"from": "gpt", "value": "Blue.", "train": True},
        ]
    }
    (tmp_path / "in.jsonl").write_text(json.dumps(row))
    command.main(
        [
            "--format",
            "sharegpt",
            "--input",
            str(tmp_path / "in.jsonl"),
            "--output",
            str(tmp_path / "out.jsonl"),
        ]
    )
    words = BYTES._replace(
        render=lambda messages: "".join(message["content"] for message in messages)
    )
    (example,) = read_jsonl(tmp_path / "out.jsonl", words, append_eos=False)
    assert (example.input_ids, example.prompt_length) == (list(b"qTable.qBlue."), len("qTable.q"))


def test_with_chat_a_question_and_its_answer_become_a_dialogue(tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps({"question": "q", "answer": "a"}))
    command.main(
        [
            "--format",
            "gsm8k",
            "--input",
            str(tmp_path / "in.jsonl"),
            "--output",
            str(tmp_path / "out.jsonl"),
            "--chat",
        ]
    )
    assert read(tmp_path / "out.jsonl") == [{"messages": [ASKED, SAID]}]


def test_a_folder_of_single_objects_is_read_file_by_file(tmp_path):
    files = {
        "a/2.json": {"problem": "p2", "solution": "s"},
        "a/1.json": {"problem": "p1", "solution": "s"},
        "b/1.json": {"a": 1},
    }
    for name, row in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(row, indent=2))  # as MATH is published
    rows, skipped = convert(tmp_path, "math")
    assert [row.prompt for row in rows] == ["p1", "p2"]
    assert [skip.place for skip in skipped] == [f"{tmp_path / 'b/1.json'}:1"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no .json or .jsonl file in this folder"):
        convert(tmp_path / "empty", "math")


@pytest.mark.parametrize(
    "name, row",
    [
        ("s1k", {"problem": "p", "solution": "s", "thinking": ""}),
        ("math500", {"problem": "p", "solution": "s", "level": 3}),
        ("gsm8k", {"question": "p", "answer": "s"}),
        ("opc", {"instruction": "p", "output": "s", "code": "c"}),
        ("math", {"problem": "p", "solution": "s", "level": "Level 5"}),
        ("prompt_completion", {"prompt": "p", "completion": "s", "id": 1}),
        ("alpaca", {"instruction": "p", "input": "", "output": "s"}),
        ("alpaca", {"instruction": "p", "output": "s"}),
    ],
)
def test_every_format_makes_prompt_and_completion(tmp_path, name, row):
    for text in (json.dumps([row, row]), json.dumps(row) + "\n\n" + json.dumps(row) + "\n"):
        (tmp_path / "in").write_text(text)
        assert convert(tmp_path / "in", name) == ([("p", "s"), ("p", "s")], [])


def test_text_is_kept_as_it_is(tmp_path):
    text = " é \u2028 \\frac{1}{2} <<1+1=2>> \n"
    (tmp_path / "in.jsonl").write_text(
        json.dumps({"question": text, "answer": text}, ensure_ascii=False), encoding="utf-8"
    )
    command.main(
        [
            "--format",
            "gsm8k",
            "--input",
            str(tmp_path / "in.jsonl"),
            "--output",
            str(tmp_path / "out.jsonl"),
        ]
    )
    assert read(tmp_path / "out.jsonl") == [{"prompt": text, "completion": text}]


DEEP = '{"a":' * 100000 + "1" + "}" * 100000
BAD = {
    "{not json": "not JSON: Expecting property name",
    "3": "expected an object, found int",
    '{"question": "a"}': "'answer' must be text, found keys question",
    '{"question": 1, "answer": "b"}': "'question' must be text, found int",
    '{"question": "a", "answer": " "}': "'answer' is empty",
    '{"question": "a", "answer": "\\ud800"}': "not UTF-8 text: lone surrogate \\ud800 at "
    "character 1",
    '{"question": "a\udcff", "answer": "b"}': "not UTF-8 text: byte 0xff, or lone surrogate "
    "\\udcff at character 16",
    DEEP: "nested too deeply",
    '{"question": ' + "1" * 5000 + "}": "not JSON: Exceeds the limit",
}


def test_bad_rows_are_skipped_with_file_line_and_reason_and_the_rest_is_kept(tmp_path, capsys):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        "\n".join([json.dumps(GOOD), *BAD, json.dumps(GOOD)]) + "\n",
        encoding="utf-8",
        errors="surrogateescape",
    )
    command.main(["--format", "gsm8k", "--input", str(source), "--output", str(out)])
    reported = capsys.readouterr()
    for number, reason in enumerate(BAD.values(), 2):
        assert f"skipped {source}:{number}: {reason}" in reported.err
    assert f"{out}: 2 rows of 11, 9 skipped" in reported.out and len(read(out)) == 2


@pytest.mark.parametrize(
    "line",
    ["[1, 2]", DEEP, "[" * 100000 + "]" * 100000, '{"question": "a'],
    ids=["array", "deep", "deeper", "torn"],
)
def test_a_bad_first_row_does_not_stop_the_others(tmp_path, line):
    (tmp_path / "in.jsonl").write_text(line + "\n" + json.dumps(GOOD) + "\n")
    rows, skipped = convert(tmp_path / "in.jsonl", "gsm8k")
    assert len(rows) == 1 and [skip.place for skip in skipped] == [f"{tmp_path / 'in.jsonl'}:1"]


@pytest.mark.parametrize(
    "text", [json.dumps(GOOD) + "\n" + json.dumps(GOOD), json.dumps([GOOD, GOOD], indent=1)]
)
def test_a_byte_order_mark_costs_no_row(tmp_path, text):
    (tmp_path / "in.json").write_text(text, encoding="utf-8-sig")
    rows, skipped = convert(tmp_path / "in.json", "gsm8k")
    assert len(rows) == 2 and not skipped


def test_text_of_an_array_that_is_not_unicode_costs_its_row_alone(tmp_path):
    text = json.dumps(
        [
            {"conversations": [ASK, SAY]},
            {"conversations": [ASK, {"from": "gpt", "value": "\ud800"}]},
        ]
    )
    third = (
        json.dumps({"conversations": [ASK, {"from": "gpt", "value": "BYTE"}]})
        .encode()
        .replace(b"BYTE", b"\xff")
    )
    (tmp_path / "in.json").write_bytes(text.encode()[:-1] + b", " + third + b"]")
    rows, skipped = convert(tmp_path / "in.json", "sharegpt")
    assert len(rows) == 1 and [skip.place.split(": ")[1] for skip in skipped] == ["row 2", "row 3"]
    assert all(skip.reason.startswith("not UTF-8 text: ") for skip in skipped)


def test_a_broken_object_on_many_lines_is_one_row(tmp_path):
    for name, text in {
        "1": '{\n "problem": "p",\n "solution": "s"\n}\n',
        "2": '{\n "problem": "p",\n "solution": \n}\n',
        "3": '{"problem": "p",\n "solution": "s',
    }.items():
        (tmp_path / f"{name}.json").write_text(text)
    rows, skipped = convert(tmp_path, "math")
    assert len(rows) == 1
    assert [skip.place for skip in skipped] == [
        f"{tmp_path / '2.json'}:4",
        f"{tmp_path / '3.json'}:2",
    ]


@pytest.mark.parametrize("line", BAD)
def test_strict_ends_at_the_first_bad_row_and_writes_nothing(tmp_path, line):
    source, out = tmp_path / "in.jsonl", tmp_path / "sub" / "out.jsonl"
    source.write_text(
        json.dumps(GOOD) + "\n" + line + "\n", encoding="utf-8", errors="surrogateescape"
    )
    with pytest.raises(SystemExit) as exit_info:
        command.main(
            ["--format", "gsm8k", "--input", str(source), "--output", str(out), "--strict"]
        )
    assert str(exit_info.value.code).startswith(f"error: {source}:2: {BAD[line]}")
    assert "\n" not in str(exit_info.value.code)
    assert not out.parent.exists()


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no such file"),
        (b"", "no row fits --format gsm8k"),
        (b"[1, 2", ":1: a JSON array that cannot be read: not JSON: Expecting"),
        (b'{"problem": "a", "solution": "b"}', "no row fits --format gsm8k (first: "),
        (b"PAR1\xff\xfe", "not UTF-8 text but parquet: export it as JSONL"),
        (
            b'[{"a": ' + b"[" * 100000 + b"\n]",
            ":1: a JSON array that cannot be read: nested too deeply",
        ),
    ],
)
def test_a_file_that_cannot_be_converted_is_refused_in_one_line(tmp_path, content, message):
    source, out = tmp_path / "in", tmp_path / "out.jsonl"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(SystemExit) as exit_info:
        command.main(["--format", "gsm8k", "--input", str(source), "--output", str(out)])
    text = str(exit_info.value.code)
    assert text.startswith("error: ") and message in text and "\n" not in text
    assert not out.exists()


def test_an_existing_output_is_not_overwritten(tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps(GOOD))
    (tmp_path / "out.jsonl").write_text("mine")
    with pytest.raises(SystemExit, match="exists"):
        command.main(
            [
                "--format",
                "gsm8k",
                "--input",
                str(tmp_path / "in.jsonl"),
                "--output",
                str(tmp_path / "out.jsonl"),
            ]
        )
    assert (tmp_path / "out.jsonl").read_text() == "mine"


def test_a_write_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        jsonl.write_rows([Row("a", "b"), Row("\ud800", "b")], tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="^/proc/x/y could not be written"):
        jsonl.write_rows([Row("a", "b")], Path("/proc/x/y"))
