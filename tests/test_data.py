"""Training rows of dialogues: what the chat template makes the prompt, what is the
answer, and what is refused.
"""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path

import pytest

from training import data, remask_sft, router_sft, sft
from training.data import token_cache
from training.data.byte_tokenizer import EOS, MASK, byte_tokenizer

USER, ANSWER = {"role": "user", "content": " hi "}, {"role": "assistant", "content": "ho\n"}
SYSTEM = {"role": "system", "content": "be brief"}
PROMPTED = {"prompt": "a", "completion": "b"}
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
FIRST = "<|startoftext|>" + HEADER.format("user") + "hi<|eot_id|>" + HEADER.format("assistant")


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> data.Vocabulary:
    folder = tmp_path_factory.mktemp("tokenizer")
    ids = byte_tokenizer(folder)
    return data.vocabulary(folder, 256 + len(ids), 1000, ids[EOS], ids[MASK])


def read(folder: Path, words: data.Vocabulary, *rows: dict, **options) -> list[data.Example]:
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(data.read_jsonl(folder / "data.jsonl", words, **{"append_eos": True, **options}))


def halves(example: data.Example) -> tuple[list[int], list[int]]:
    return example.input_ids[: example.prompt_length], example.input_ids[example.prompt_length :]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"conversations": [{"from": "human", "value": " hi "}, {"from": "gpt", "value": "ho\n"}]},
    ],
)
def test_the_prompt_is_the_rendered_chat_with_the_header_and_the_answer_ends_with_eos(
    tmp_path, words, row
):
    (example,) = read(tmp_path, words, row)
    assert halves(example) == (words.encode(FIRST), [*words.encode("ho\n"), words.eos_id])
    assert read(tmp_path, words, row, append_eos=False) == [
        example._replace(input_ids=example.input_ids[:-1])
    ]


def test_each_answer_of_a_dialogue_is_an_example_behind_all_turns_before_it(tmp_path, words):
    turns = [SYSTEM, USER, ANSWER, USER, {"role": "assistant", "content": "hum"}, USER]
    first, second = read(tmp_path, words, {"messages": turns})
    head = (
        "<|startoftext|>"
        + HEADER.format("system")
        + "be brief<|eot_id|>"
        + HEADER.format("user")
        + "hi<|eot_id|>"
    )
    head += HEADER.format("assistant")
    assert halves(first) == (words.encode(head), [*words.encode("ho\n"), words.eos_id])
    prompt = words.encode(
        head + "ho<|eot_id|>" + HEADER.format("user") + "hi<|eot_id|>" + HEADER.format("assistant")
    )
    assert halves(second) == (prompt, [*words.encode("hum"), words.eos_id])


def test_a_dialogue_and_its_rendered_text_are_the_same_example(tmp_path, words):
    dialogue, text = read(
        tmp_path, words, {"messages": [USER, ANSWER]}, {"prompt": FIRST, "completion": "ho\n"}
    )
    assert dialogue == text


def test_seq_len_cuts_the_answers_of_dialogues_too(tmp_path, words):
    (whole,) = read(tmp_path, words, {"messages": [USER, ANSWER]})
    (cut,) = read(tmp_path, words, {"messages": [USER, ANSWER]}, seq_len=len(whole.input_ids) - 2)
    assert cut == whole._replace(input_ids=whole.input_ids[:-2])
    with pytest.raises(
        ValueError,
        match="data.jsonl:1: the prompt leaves no room for an answer in --seq_len .*, nor does "
        "any other",
    ):
        read(tmp_path, words, {"messages": [USER, ANSWER]}, seq_len=whole.prompt_length)


def test_prompts_that_leave_no_room_are_left_out_and_told_in_one_line(tmp_path, words, caplog):
    caplog.set_level("INFO")
    long, short = {"prompt": "1234", "completion": "5"}, {"prompt": "1", "completion": "2"}
    assert len(read(tmp_path, words, short, long, short, long, seq_len=4)) == 2
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'data.jsonl'}:2: the prompt leaves no room for an answer in --seq_len 4; "
        "left out, 2 of 4 examples in all"
    ]
    caplog.clear()
    cut = {"prompt": "1", "completion": "2345"}
    assert [len(each.input_ids) for each in read(tmp_path, words, short, cut, cut, seq_len=4)] == [
        *(3, 4, 4)
    ]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'data.jsonl'}:2: the answer loses its end after --seq_len 4 tokens; cut, "
        "2 of 3 examples in all"
    ]
    # nor had it any
    with pytest.raises(
        ValueError, match=r"data.jsonl:2: prompt_length \(4\) must leave at least one answer token"
    ):
        read(tmp_path, words, short, {"input_ids": [1, 2, 3, 4], "prompt_length": 4}, seq_len=4)
    with pytest.raises(
        ValueError,
        match="data.jsonl:2: 1201 tokens, .* or give --seq_len 1000, after which rows lose .* or "
        "are left out",
    ):
        read(tmp_path, words, short, {"prompt": "1" * 1100, "completion": "2" * 100})


@pytest.mark.parametrize(
    "line, message",
    [
        (b'{"prompt": "a\xff", "completion": "b"}', "not UTF-8 text: byte 0xff"),
        (
            rb'{"prompt": "a", "completion": "\ud800"}',
            r"not UTF-8 text: lone surrogate \ud800 at character 1",
        ),
        (
            rb'{"messages": [{"role": "user", "content": "\ud800"}, {"role": "assistant", '
            rb'"content": "b"}]}',
            "not UTF-8 text: lone surrogate",
        ),
        (b'{"prompt":' + b"[" * 100000, "nested too deeply"),
    ],
    ids=["byte", "surrogate", "dialogue", "deep"],
)
def test_text_that_is_not_unicode_is_refused_by_file_and_line(tmp_path, words, line, message):
    (tmp_path / "data.jsonl").write_bytes(b'{"prompt": "a", "completion": "b"}\n' + line + b"\n")
    with pytest.raises(ValueError) as info:
        data.read_jsonl(tmp_path / "data.jsonl", words, append_eos=True)
    assert str(info.value).startswith(f"{tmp_path / 'data.jsonl'}:2: {message}")


def test_a_byte_order_mark_is_no_text(tmp_path, words):
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "completion": "b"}', encoding="utf-8-sig")
    assert len(data.read_jsonl(tmp_path / "data.jsonl", words, append_eos=True)) == 1


@pytest.mark.parametrize(
    "row, message",
    [
        ({"messages": [USER]}, "no turn is the assistant's, only user"),
        ({"messages": []}, "expected a list of turns"),
        ({"messages": [ANSWER, USER, ANSWER]}, "turn 1 is the assistant's and answers nobody"),
        ({"conversations": [USER, ANSWER]}, "turn 1 must have 'from' and 'value'"),
        (
            {"messages": [USER, ANSWER], "id": 1},
            r"found keys \['id', 'messages'\] .*training.convert",
        ),
        ({"turns": [USER, ANSWER]}, r"found keys \['turns'\]"),
    ],
)
def test_a_dialogue_without_answers_is_refused_by_file_and_line(tmp_path, words, row, message):
    with pytest.raises(ValueError, match=f"data.jsonl:2: .*{message}") as info:
        read(tmp_path, words, {"messages": [USER, ANSWER]}, row)
    assert "\n" not in str(info.value)


# --- what the keys of turns and rows say ----------------------------------------------

MARKED = [  # what is learned of a row; the first three are those of a public report
    (
        {
            "messages": [
                SYSTEM,
                USER,
                {**ANSWER, "content": "It is 5.", "weight": 0},
                USER,
                {**ANSWER, "content": "It is 4.", "weight": 1},
            ]
        },
        ["It is 4."],
    ),
    (
        {
            "conversations": [
                {"from": "human", "value": "What is 2 + 2?", "weight": None},
                {"from": "gpt", "value": "It is 5.", "weight": 0},
                {"from": "human", "value": "Check that again.", "weight": None},
                {"from": "gpt", "value": "It is 4.", "weight": 1},
            ]
        },
        ["It is 4."],
    ),
    (
        {
            "conversations": [
                {"from": "human", "value": "Name a colour.", "train": False},
                {"from": "gpt", "value": "Table.", "train": False},
                {"from": "human", "value": "A colour, please.", "train": False},
                {"from": "gpt", "value": "Blue.", "train": True},
            ]
        },
        ["Blue."],
    ),
    (
        {
            "messages": [
                USER,
                {**ANSWER, "content": "a", "loss": True},
                USER,
                {**ANSWER, "content": "b", "loss": False},
            ]
        },
        ["a"],
    ),
    (
        {
            "messages": [
                USER,
                {**ANSWER, "content": "a", "train_on_turn": 1.0},
                {**ANSWER, "content": "b", "weight": 0.0},
            ]
        },
        ["a"],
    ),
    # a greeting
    (
        {
            "messages": [
                {**ANSWER, "content": "Hello!", "weight": 0},
                USER,
                {**ANSWER, "content": "b"},
            ]
        },
        ["b"],
    ),
    (
        {
            "messages": [USER, {**ANSWER, "content": "a"}],
            "weight": 1,
            "tools": None,
            "chat_template_kwargs": {},
            "label": True,
        },
        ["a"],
    ),
    (
        {
            "messages": [
                {**USER, "id": 7, "timestamp": "now"},
                {**ANSWER, "content": "a", "tool_calls": [], "refusal": None, "name": ""},
            ]
        },
        ["a"],
    ),
]


@pytest.mark.parametrize("row, answers", MARKED, ids=range(len(MARKED)))
def test_only_answers_that_are_not_marked_otherwise_are_learned(tmp_path, words, row, answers):
    examples = read(tmp_path, words, row, append_eos=False)
    assert [halves(example)[1] for example in examples] == [words.encode(text) for text in answers]


def test_an_answer_that_is_not_learned_stands_in_the_prompts_after_it(tmp_path, words):
    turns = [USER, ANSWER, USER, {**ANSWER, "content": "hum"}]
    assert (
        read(tmp_path, words, {"messages": [USER, {**ANSWER, "weight": 0}, *turns[2:]]})
        == read(tmp_path, words, {"messages": turns})[1:]
    )


def test_parts_of_text_are_one_text(tmp_path, words):
    parts = [
        {"type": "text", "text": "h", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "o\n", "image": None},
    ]
    whole = read(tmp_path, words, {"messages": [USER, ANSWER]})
    assert read(tmp_path, words, {"messages": [USER, {**ANSWER, "content": parts}]}) == whole
    assert (
        read(
            tmp_path,
            words,
            {
                "conversations": [
                    {"from": "human", "value": [{"type": "text", "text": " hi "}]},
                    {"from": "gpt", "value": parts},
                ]
            },
        )
        == whole
    )


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
IMAGE = {"type": "image_url", "image_url": {"url": "http://x"}}


@pytest.mark.parametrize(
    "row, message",
    [
        (
            {"messages": [USER, {**ANSWER, "tool_calls": [CALL]}]},
            "turn 2: 'tool_calls' is not supported, .*: write that into the text, or leave",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
            "turn 2: 'tool_calls' is not supported",
        ),
        (
            {"messages": [USER, {**ANSWER, "reasoning_content": "so"}]},
            "turn 2: 'reasoning_content' is not supported",
        ),
        ({"messages": [USER, {**ANSWER, "thinking": "so"}]}, "turn 2: 'thinking' is not supported"),
        ({"messages": [{**USER, "name": "Ann"}, ANSWER]}, "turn 1: 'name' is not supported"),
        (
            {"messages": [USER, {**ANSWER, "train_detail": [{"begin_offset": 0}]}]},
            "turn 2: 'train_detail' is not supported",
        ),
        (
            {"conversations": [{"from": "human", "value": "q", "mask": False}]},
            "turn 1: 'mask' is not supported",
        ),
        (
            {"messages": [USER, {**ANSWER, "weight": 0.5}]},
            "turn 2: 'weight' must be 0 or 1, or false or true, got 0.5",
        ),
        (
            {"messages": [USER, {**ANSWER, "train": "no"}]},
            "turn 2: 'train' must be 0 or 1, or false or true, got 'no'",
        ),
        (
            {"messages": [USER, {**ANSWER, "train": True, "weight": 0}]},
            "turn 2: 'weight' and 'train' contradict each other",
        ),
        (
            {"messages": [{**USER, "train": True}, ANSWER]},
            "turn 1 is marked to be learned and is the user's",
        ),
        (
            {"messages": [USER, {**ANSWER, "weight": 0}]},
            "every answer is marked not to be learned: leave the row out",
        ),
        (
            {"messages": [ANSWER, {**ANSWER, "weight": 0}, USER]},
            "turn 1 is the assistant's and answers nobody",
        ),
        (
            {"messages": [{**USER, "content": [IMAGE]}, ANSWER]},
            "turn 1, part 1: only parts .* are read, found 'image_url'",
        ),
        (
            {"messages": [USER, {**ANSWER, "content": ["ho"]}]},
            "turn 2, part 1: only parts .* are read, found 'str'",
        ),
        (
            {
                "messages": [
                    {**USER, "content": [{"type": "text", "text": "a", "image": "b"}]},
                    ANSWER,
                ]
            },
            "turn 1, part 1: 'image' is not supported",
        ),
        ({"messages": [USER, {**ANSWER, "content": []}]}, "turn 2 is empty"),
        ({"messages": [USER, ANSWER], "tools": [CALL]}, "'tools' is not supported"),
        (
            {"messages": [USER, ANSWER], "chat_template_kwargs": {"enable_thinking": True}},
            "'chat_template_kwargs' is not supported",
        ),
        ({"prompt": "a", "completion": "b", "system": "c"}, "'system' is not supported"),
        (
            {"prompt": "a", "completion": "b", "weight": 0},
            "the row is marked not to be learned: leave it out",
        ),
        ({"prompt": "a", "completion": "b", "weight": 2}, "the row: 'weight' must be 0 or 1"),
        (
            {"messages": [USER, ANSWER], "label": False},
            "'label' is false, so the answer is not to be learned",
        ),
    ],
)
def test_a_key_that_would_change_what_is_learned_is_refused_by_file_line_and_name(
    tmp_path, words, row, message
):
    with pytest.raises(ValueError, match=f"data.jsonl:2: {message}") as info:
        read(tmp_path, words, {"messages": [USER, ANSWER]}, row)
    assert "\n" not in str(info.value)


def test_a_tokenizer_without_template_refuses_dialogues_and_takes_text(tmp_path, words):
    plain = words._replace(render=None)
    assert len(read(tmp_path, plain, {"prompt": "a", "completion": "b"})) == 1
    with pytest.raises(ValueError, match="data.jsonl:1: a dialogue needs a chat template"):
        read(tmp_path, plain, {"messages": [USER, ANSWER]})


def test_what_the_template_itself_refuses_is_named_by_file_and_line(tmp_path):
    folder = tmp_path / "tokenizer"
    ids = byte_tokenizer(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{ raise_exception('roles must alternate') }}"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    words = data.vocabulary(folder, 256 + len(ids), 1000, ids[EOS])
    with pytest.raises(
        ValueError,
        match="data.jsonl:1: the chat template of .* cannot render the chat: roles must alternate",
    ):
        read(tmp_path, words, {"messages": [USER, ANSWER]})


@pytest.mark.parametrize(
    "row, message",
    [
        ({"prompt": "a", "completion": ""}, "'completion' is empty: leave the row out"),
        ({"prompt": "", "completion": ""}, "'completion' is empty: leave the row out"),
        ({"prompt": f"a{MASK}", "completion": "b"}, "token 1 is the mask token (258)"),
        ({"prompt": "a", "completion": f"bc{MASK}"}, "token 3 is the mask token (258)"),
        ({"messages": [USER, {**ANSWER, "content": MASK}]}, "token 25 is the mask token (258)"),
        ({"input_ids": [258, 1], "prompt_length": 0}, "token 0 is the mask token (258)"),
    ],
    ids=str,
)
@pytest.mark.parametrize("append_eos", [True, False])
def test_a_row_that_teaches_nothing_or_the_mask_is_refused(
    tmp_path, words, row, message, append_eos
):
    with pytest.raises(ValueError) as info:
        read(tmp_path, words, PROMPTED, row, append_eos=append_eos)
    assert f"data.jsonl:2: {message}" in str(info.value)
    assert "\n" not in str(info.value)


def test_texts_are_learned_as_they_are_and_rows_as_often_as_they_stand(tmp_path, words):
    texts = [("", "b"), (" ", "\n"), ("\ufeffa", "\ufeff"), ("\0", "\0")] * 2
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in texts]
    found = [halves(example) for example in read(tmp_path, words, *rows)]
    assert found == [
        (words.encode(prompt), [*words.encode(answer), words.eos_id]) for prompt, answer in texts
    ]


@pytest.mark.parametrize("train", [sft.main, remask_sft.main, router_sft.main])
def test_commands_know_the_mask_that_no_row_may_hold(tmp_path, capsys, train):
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "a", "completion": MASK}) + "\n")
    command = ["--model", "tiny", "--data", str(tmp_path / "data.jsonl"), "--max_steps", "1"]
    with pytest.raises(SystemExit) as info:
        train([*command, "--use_cpu", "--output_dir", str(tmp_path / "out")])
    said = f"{info.value} {capsys.readouterr().err}"
    assert info.value.code not in (0, None) and "data.jsonl:1: token 1 is the mask token" in said


# --- data sets by hub name, or in a folder --------------------------------------------


@pytest.fixture
def folder_of(tmp_path, monkeypatch):
    """A function from rows of the splits train and test to a folder that `datasets`
    loads, as it would by name from the hub.
    """
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def write(train: list[dict], test: list[dict]) -> Path:
        for name, rows in (("train", train), ("test", test)):
            (tmp_path / "set").mkdir(exist_ok=True)
            datasets.Dataset.from_list(rows).to_parquet(tmp_path / "set" / f"{name}.parquet")
        return tmp_path / "set"

    return write


@pytest.mark.parametrize(
    "row",
    [
        PROMPTED,
        {"messages": [USER, ANSWER]},
        {"conversations": [{"from": "human", "value": " hi "}, {"from": "gpt", "value": "ho\n"}]},
        {"input_ids": [1, 2, 3], "prompt_length": 2},
    ],
    ids=lambda row: ", ".join(row),
)
def test_rows_of_a_data_set_are_those_of_a_file_and_other_columns_are_left_out(
    tmp_path, words, folder_of, row
):
    found = data.read_hub(
        str(folder_of([{**row, "source": "x"}] * 2, [{**row, "source": "y"}])),
        None,
        "train",
        words,
        append_eos=True,
    )
    assert list(found) == read(tmp_path, words, row, row)


def test_a_command_trains_on_one_split_of_a_data_set_and_evaluates_on_another(tmp_path, folder_of):
    source = folder_of([PROMPTED] * 4, [{"prompt": "a", "completion": "c"}])
    sft.main(
        [
            "--model",
            "tiny",
            "--data",
            str(source),
            "--eval_split",
            "test",
            "--max_steps",
            "1",
            "--save_strategy",
            "no",
            "--use_cpu",
            "--output_dir",
            str(tmp_path / "out"),
        ]
    )
    assert "eval_loss" in (tmp_path / "out" / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    "train, flags, message",
    [
        (
            [PROMPTED],
            ["--data", "{set}", "--train_split", "valid"],
            "--data {set} has no split valid, but train, test: choose with",
        ),
        (
            [{"question": "a", "answer": "b"}],
            ["--data", "{set}"],
            '--data {set} has columns question, answer, and rows must be {{"prompt"',
        ),
        (
            [PROMPTED, {"prompt": "a", "completion": None}],
            ["--data", "{set}"],
            '{set} train: row 2: expected {{"prompt"',
        ),
        (
            [{**PROMPTED, "system": None}, {**PROMPTED, "system": "s"}],
            ["--data", "{set}"],
            "{set} train: row 2: 'system' is not supported",
        ),
        (
            [{"prompt": 1}],
            ["--data", "{set}", "--train_split", "test"],
            "--data {set}: `datasets` cannot read this folder (CastError: ",
        ),
        (
            [PROMPTED],
            ["--data", "nobody-has-this"],
            "--data nobody-has-this: no such file or folder, and the hub did not deliver it",
        ),
        (
            [PROMPTED],
            ["--data", "{set}", "--eval_split", "test", "--eval_data", "x.jsonl"],
            "--eval_data and --eval_split are alternatives",
        ),
        (
            [PROMPTED],
            ["--data", "rows.jsonl", "--eval_split", "test"],
            "--eval_split has no effect on a file (rows.jsonl): leave it out, or",
        ),
    ],
)
def test_a_data_set_that_does_not_fit_is_refused_in_one_line(
    tmp_path, folder_of, train, flags, message
):
    place = folder_of(
        train, train[:1] if "system" in train[0] else [PROMPTED] if "prompt" in train[0] else train
    )
    with pytest.raises(SystemExit) as exit_info:
        sft.main(
            [
                "--model",
                "tiny",
                *(flag.format(set=place) for flag in flags),
                "--output_dir",
                str(tmp_path / "out"),
                "--use_cpu",
            ]
        )
    assert str(exit_info.value.code).startswith(f"error: {message.format(set=place)}")
    assert "\n" not in str(exit_info.value.code)
    assert not (tmp_path / "out").exists()


def test_stored_rows_are_the_rows_in_any_order():
    draw = random.Random(0)
    rows = [
        data.Example(
            [draw.randrange(1 << 20) for _ in range(draw.randint(1, 30))], draw.randint(0, 5)
        )
        for _ in range(100)
    ]
    stored = data.Examples(iter(rows))
    assert list(stored) == rows
    assert [stored[n] for n in (99, 0, -1, -100, 50)] == [rows[n] for n in (99, 0, -1, -100, 50)]
    assert len(data.Examples([])) == 0 and list(data.Examples([])) == []
    with pytest.raises(IndexError):
        stored[100]


def test_rows_need_not_fit_into_memory():
    tracemalloc.start()
    try:
        stored = data.Examples(data.Example([n] * 2000, 7) for n in range(1000))  # 8 MB of tokens
        assert stored[999] == ([999] * 2000, 7) and tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


# --- token rows that are kept ---------------------------------------------------------

LONG = {"prompt": "12345678", "completion": "9"}


@pytest.fixture
def no_tokens_are_made(monkeypatch):
    """A function after which whatever is not found fails."""
    return lambda: monkeypatch.setattr("training.data.rows.parse_row", None)


def test_rows_are_found_again_by_content_and_are_the_same(
    tmp_path, words, caplog, no_tokens_are_made
):
    caplog.set_level("INFO")
    rows = [
        {"messages": [USER, ANSWER]},
        PROMPTED,
        LONG,
        {"input_ids": [1, 2, 3], "prompt_length": 2},
    ]
    options = dict(seq_len=8)
    made = read(tmp_path, words, *rows, **options)
    kept = read(tmp_path, words, *rows, **options, cache=tmp_path / "cache")
    no_tokens_are_made()
    (tmp_path / "data.jsonl").rename(tmp_path / "renamed.jsonl")
    found = data.read_jsonl(
        tmp_path / "renamed.jsonl", words, append_eos=True, cache=tmp_path / "cache", **options
    )
    # a resumed run compares repr
    assert (
        [repr(row) for row in found] == [repr(row) for row in made] == [repr(row) for row in kept]
    )
    told = (
        "the prompt leaves no room for an answer in --seq_len 8; left out, 2 of 4 examples in all"
    )
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / name}.jsonl:1: {told}" for name in ("data", "data", "renamed")
    ]


def test_rows_of_other_data_options_or_tokenizers_are_others(tmp_path, words, tmp_path_factory):
    def number(*rows, vocabulary=words, **options) -> int:
        read(tmp_path, vocabulary, *rows, **options, cache=tmp_path / "cache")
        return len(list((tmp_path / "cache").iterdir()))

    folder = tmp_path_factory.mktemp("tokenizer")
    ids = byte_tokenizer(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**config, "chat_template": "{{ messages[0]['content'] }}"})
    )
    changed = [
        dict(),
        dict(append_eos=False),
        dict(seq_len=7),
        dict(vocabulary=words._replace(max_length=999)),
        dict(vocabulary=data.vocabulary(folder, words.vocab_size, words.max_length, ids[EOS])),
    ]
    assert [number(PROMPTED, **options) for options in changed] == [1, 2, 3, 4, 5]
    assert number({**PROMPTED, "prompt": "x"}) == 6 and number(PROMPTED) == 6


def test_rows_of_a_data_set_are_kept_too(tmp_path, words, folder_of, no_tokens_are_made):
    place = folder_of([PROMPTED] * 2, [PROMPTED])
    options = dict(append_eos=True, cache=tmp_path / "kept")
    made = [
        list(data.read_hub(str(place), None, split, words, **options))
        for split in ("train", "test")
    ]
    no_tokens_are_made()
    assert [
        list(data.read_hub(str(place), None, split, words, **options))
        for split in ("train", "test")
    ] == made


@pytest.mark.parametrize(
    "rows, message",
    [
        ([PROMPTED, {"prompt": 1}], "data.jsonl:2: "),
        ([], "data.jsonl: no rows"),
        ([LONG], "data.jsonl:1: "),
    ],
)
def test_rows_that_are_refused_leave_nothing(tmp_path, words, rows, message):
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            read(tmp_path, words, *rows, seq_len=8, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    "train", [sft.main, remask_sft.main, router_sft.main], ids=["sft", "remask_sft", "router_sft"]
)
def test_commands_share_what_is_kept(tmp_path, train, no_tokens_are_made):
    (tmp_path / "data.jsonl").write_text((json.dumps(PROMPTED) + "\n") * 4)
    command = [
        "--model",
        "tiny",
        "--data",
        str(tmp_path / "data.jsonl"),
        "--token_cache",
        str(tmp_path / "kept"),
        "--max_steps",
        "1",
        "--use_cpu",
    ]
    sft.main([*command, "--output_dir", str(tmp_path / "first")])
    no_tokens_are_made()
    train([*command, "--output_dir", str(tmp_path / "out")])
    assert (tmp_path / "out" / "metrics.jsonl").is_file()


def test_of_two_runs_that_keep_the_same_one_wins_and_both_go_on(tmp_path):
    def theirs(folder: Path) -> None:
        (folder / "file").write_text("theirs")

    def mine(folder: Path) -> None:
        (folder / "file").write_text("mine")
        token_cache.kept(tmp_path, ["same"], theirs)  # the other is done first

    found = token_cache.kept(tmp_path, ["same"], mine)
    assert [path.name for path in tmp_path.iterdir()] == [found.name]
    assert (found / "file").read_text() == "theirs"


def test_a_cache_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path, words, full_disk):
    read(tmp_path, words, *[PROMPTED] * 300)
    with (
        full_disk(1000),
        pytest.raises(
            OSError,
            match=f"tokens could not be kept in {tmp_path / 'cache'} .*: give another "
            "--token_cache",
        ),
    ):
        data.read_jsonl(tmp_path / "data.jsonl", words, append_eos=True, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
