"""Texts with marked spans: how they are read, filled in and refused, and the two commands."""

from __future__ import annotations

import io
import sys

import pytest

from llada_plugins import chat
from llada_plugins import infilling as door
from llada_plugins.engine.engine import Engine, Request
from llada_plugins.engine.infilling import tries
from llada_plugins.engine.marked_text import checked, marked, request_of
from llada_plugins.tasks import sudoku

PROBLEMS = sudoku.problems("test", 4)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(gen_length=4, device="cpu", batch_size=8, max_length=64)


def middle(problem: sudoku.SudokuProblem, number: int = 4) -> list[str | int]:
    """A solved puzzle without the second row of its solution."""
    return [problem.puzzle + problem.solution[:4], number, problem.solution[8:]]


@pytest.mark.parametrize(
    "text, pieces",
    [
        ("a<|infill|>b", ["a", (9,), "b"]),
        ("<|infill:3|>b", [(3,), "b"]),
        ("a<|infill:4, 8,16|>", ["a", (4, 8, 16)]),
        ("a<|infill:1|>b<|infill|>c", ["a", (1,), "b", (9,), "c"]),
    ],
)
def test_marks_are_read(text, pieces):
    assert marked(text, 9) == pieces


@pytest.mark.parametrize(
    "text, told",
    [
        ("no span", "nothing is to be filled in: the text has no span"),
        ("a<|infill:0|>b", "at least 1 token, got 0"),
        ("a<|infill:-3|>b", "a span is written .*got '<|infill:-3|>b'"),
        ("a<|infill:|>b", "give each length"),
        ("a<|infill:4,,8|>b", "give each length"),
        ("a<|infill:4,4|>b", "a span's lengths differ, got 4,4"),
        ("a<|infill:<|infill:4|>|>b", "a span is written .*got '<.infill:'"),
        ("a<|infill:4|><|infill:5|>b", "two spans, of 4 and 5 tokens, have no text between"),
        ("a<|infill b", "a span is written"),
        ("a<|infill:2000000|>", "a span has at most 1,000,000 tokens, got 2000000"),
        (f"a<|infill:4,{'9' * 5000}|>", "a span has at most 1,000,000 tokens, got 4,9999"),
        ("<|infill:1,2,3,4,5,6,7,8,9|>a<|infill:1,2,3,4,5,6,7,8|>", "72 combinations"),
    ],
)
def test_what_is_no_mark_is_refused(text, told):
    with pytest.raises(ValueError, match=told):
        marked(text, 9)


def test_pieces_without_a_span_or_with_one_of_no_length_are_refused():
    for pieces in (["a"], [""], [], ["a", ()], ["a", 0], ["a", 2_000_000]):
        with pytest.raises(ValueError, match="span"):
            checked(pieces)


def test_every_combination_of_lengths_is_tried(engine):
    request = request_of(["a", [1, 2], "b", 3, "c", [4, 5]], engine.sampler)
    assert [each.request.rest for each in tries([request])] == [
        ((one,), "b", (3,), "c", (two,)) for one in (1, 2) for two in (4, 5)
    ]


def test_a_span_is_filled_in_and_all_else_stays(engine):
    for problem in PROBLEMS:
        before, _, after = middle(problem)
        found = engine.infill(f"{before}<|infill|>{after}")
        assert found.text == f"{before}{found.spans[0]}{after}"
        assert sudoku.is_valid(problem.puzzle, found.text.split("=")[1])
        assert found.completion.num_forwards == found.completion.num_tokens == 4


def test_several_spans_are_filled_in_together(engine):
    problem = PROBLEMS[0]
    solved = problem.puzzle + problem.solution
    found = engine.infill([solved[:18], 3, solved[21:25], 2, solved[27:30], 3])
    assert sudoku.is_valid(problem.puzzle, found.text.split("=")[1])
    assert [len(span) for span in found.spans] == [3, 2, 3]
    assert found.completion.text == found.text[18:]


def test_the_length_of_the_highest_mean_log_probability_is_taken(engine):
    before, _, after = middle(PROBLEMS[1])
    lengths = [2, 4, 5]
    alone = [engine.infill([before, length, after]) for length in lengths]
    best = max(alone, key=lambda found: found.completion.log_probability)
    found = engine.infill([before, lengths, after])
    assert found.text == best.text and len(found.spans[0]) == 4
    assert found.completion.num_forwards == sum(each.completion.num_forwards for each in alone)


def test_texts_questions_and_open_lengths_share_a_call(engine):
    asked = [
        request_of(middle(PROBLEMS[0]), engine.sampler),
        Request(PROBLEMS[1].puzzle, engine.sampler_for({"gen_length": 16})),
        request_of([PROBLEMS[2].puzzle, [15, 16]], engine.sampler),
        request_of(middle(PROBLEMS[3]), engine.sampler),
    ]

    def plain(completion):
        return completion._replace(seconds=0.0)

    together = {number: plain(each) for number, each in engine.generate(asked)}
    alone = {}
    for number, request in enumerate(asked):
        ((_, completion),) = engine.generate([request])
        alone[number] = plain(completion)
    assert {number: each.text for number, each in together.items()} == {
        number: each.text for number, each in alone.items()
    }
    assert all(together[each].num_forwards == alone[each].num_forwards for each in together)


def test_an_end_token_cuts_the_text_of_its_span(engine, monkeypatch):
    row = engine.encode("1")
    monkeypatch.setattr(engine, "special", engine.special._replace(eos=row[0]))
    problem = PROBLEMS[0]
    ends = problem.solution[4:8].index("1")
    found = engine.infill(middle(problem))
    assert found.spans == (problem.solution[4:8][:ends],)
    assert found.text.endswith(problem.solution[8:])


@pytest.mark.parametrize(
    "method, options",
    [
        ("llada_ups", {"revise": True, "steps": 4}),
        ("llada_ala", {}),
    ],
)
def test_methods_that_can_fill_in_do(method, options):
    engine = Engine(method, gen_length=4, device="cpu", **options)
    found = engine.infill(middle(PROBLEMS[0]))
    before, _, after = middle(PROBLEMS[0])
    assert found.text == f"{before}{found.spans[0]}{after}" and len(found.spans[0]) == 4


@pytest.mark.parametrize(
    "pieces, options, told",
    [
        ([2, "b"], {"stop_at": "block"}, "stop_at=block ends an answer at an end token"),
        (["1", [2, 3], "2"], {"confidence_source": "margin"}, "confidence_source=margin ranks"),
        (["1", [2, 3]], {"alg_temp": 0.3}, "alg_temp ranks them otherwise"),
        (["1", 64], {}, "from its first span on exceeds the context"),
        (["1", 2, "3" * 64], {}, "from its first span on exceeds the context"),
    ],
)
def test_what_cannot_be_filled_in_is_refused_by_name(engine, pieces, options, told):
    with pytest.raises(ValueError, match=told):
        engine.infill(pieces, **options)


def test_the_mask_token_in_a_text_is_refused(engine):
    mask = engine.tokenizer.decode([engine.special.mask])
    with pytest.raises(ValueError, match="holds the mask token"):
        engine.infill(["1", 2, f"3{mask}"])


def test_a_text_that_is_too_long_loses_its_beginning_or_is_refused(engine):
    before, _, after = middle(PROBLEMS[0])
    long = "1" * engine.max_length + before
    found = engine.infill([long, 4, after])
    assert found.text == f"{long}{found.spans[0]}{after}"
    assert found.completion.overlong == "truncated"
    strict = Engine(gen_length=4, device="cpu", overlong="error", max_length=64)
    with pytest.raises(ValueError, match="and 8 tokens after it exceed the context"):
        strict.infill([long, 4, after])


# ---- commands


def test_the_command_prints_the_text_filled_in(capsys, tmp_path):
    before, _, after = middle(PROBLEMS[0])
    text = f"{before}<|infill:4|>{after}"
    expected = Engine(device="cpu").infill(text).text + "\n"
    assert door.main(["--text", text, "--device", "cpu"]) == 0
    assert capsys.readouterr().out == expected
    file = tmp_path / "text"
    file.write_text(text)
    assert door.main(["--file", str(file), "--device", "cpu"]) == 0
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    "flags, told",
    [
        ([], "one of --text and --file"),
        (["--text", "no span"], "nothing is to be filled in"),
        (["--text", "<|infill|>", "--model", "llada_prm"], "a process reward model judges"),
        (
            ["--text", "1<|infill|>", "--sampling_method", "semi_ar_origin"],
            "sampling_method=semi_ar_origin shows a block nothing",
        ),
        (["--file", "absent"], "absent"),
        (["--file", "latin"], "latin: not UTF-8 text: byte 0xe9"),
    ],
)
def test_mistakes_end_with_one_line_before_weights_are_read(flags, told, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin").write_bytes(b"\xe9<|infill|>")
    monkeypatch.setattr("llada_plugins.models.loading.load_model", None)
    with pytest.raises(SystemExit) as ended:
        door.main(flags)
    assert told in str(ended.value) and "\n" not in str(ended.value)


def test_a_line_of_the_chat_fills_in_and_is_no_turn(capsys, monkeypatch):
    before, _, after = middle(PROBLEMS[0])
    text = f"{before}<|infill:4|>{after}"
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"/infill {text}\n{PROBLEMS[1].puzzle}\n"))
    flags = ["--chat", "false", "--gen_length", "16", "--device", "cpu"]
    assert chat.main(flags) == 0
    engine = Engine(gen_length=16, device="cpu")
    ((_, completion),) = engine.generate([Request(PROBLEMS[1].puzzle, engine.sampler)])
    assert capsys.readouterr().out.splitlines() == [engine.infill(text).text, completion.text]
