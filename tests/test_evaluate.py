"""Evaluation of question files: the grading rule, the file that a killed run goes on
with, and the command.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from operator import itemgetter
from pathlib import Path

import pytest

pytest.importorskip("math_verify")

from llada_plugins.engine.asked import option_classes
from llada_plugins.engine.engine import Engine, Request
from llada_plugins.engine.question_files import EvaluateConfig, Row, summary
from llada_plugins.evaluate import main, read_command_line
from llada_plugins.files.csv_journal import MetricsFile
from llada_plugins.methods.table import METHODS
from llada_plugins.models.folder import TINY
from llada_plugins.options.fields import names
from llada_plugins.rewards.step_scorer import ScoreError
from llada_plugins.tasks import mathematics, sudoku
from llada_plugins.tasks.mathematics import Grade, Question, check_references, grade, read

ROOT = Path(__file__).parents[1]
QUESTIONS = [
    Question("1+1?", "2"),
    Question('Half of 3?\n"Say" it.', "\\frac{3}{2}"),
    Question("1+1?", "2"),
    Question("A, b?", "\\boxed{7}"),
    Question("1+1?", "2"),
    Question("Who?", "\\text{Ann}"),
]
SHORT = {"gen_length": "8", "steps": "4", "instruction": "", "temperature": "1.0"}
TIMES = ("seconds", "prm_seconds")


def write_csv(path: Path, questions: list[Question] = QUESTIONS) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("question", "answer"), *questions])
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    """The table without what a clock says."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {name: value for name, value in row.items() if name not in TIMES}
            for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize(
    ("reference", "response", "correct", "answer"),
    [
        ("\\frac{1}{2}", "so $x = \\boxed{\\frac{2}{4}}$.", True, "\\frac{2}{4}"),
        ("\\frac43", "\\boxed{\\dfrac{4}{3}}", True, "\\frac{4}{3}"),
        ("\\frac{1}{2}", "The answer is 0.5", True, "0.5"),
        ("\\frac{1}{2}", "\\boxed{\\frac{1}{3}}", False, "\\frac{1}{3}"),
        ("[1,2)", "\\boxed{[1, 2)}", True, "[1, 2)"),
        ("[1,2)", "\\boxed{(1, 2)}", False, "(1, 2)"),
        ("5\\text{ cm}", "\\boxed{5}", True, "5"),
        ("90^\\circ", "\\boxed{90}", True, "90"),
        ("\\$18.90", "\\boxed{18.9}", True, "18.9"),
        ("10,080", "\\boxed{10080}", True, "10080"),
        ("\\text{Evelyn}", "\\boxed{\\text{Angela}}", False, "\\text{Angela}"),
        ("\\text{Evelyn}", "\\boxed{Evelyn}", True, "Evelyn"),
        ("x^2+2x+1", "\\boxed{(x+1)^2}", True, "(x+1)^2"),
        ("1,2,3", "\\boxed{3,2,1}", True, "3,2,1"),
        ("\\boxed{3}", "\\boxed{3}", True, "3"),
        ("We get $\\boxed{3}$", "\\boxed{3}", True, "3"),
        ("3", "first 3, then $\\boxed{4}$", False, "4"),
        ("3", "no answer", False, ""),
        ("3", "", False, ""),
        ("3", "\\boxed{3", False, ""),
    ],
)
def test_an_answer_counts_where_it_is_mathematically_the_reference(
    reference: str, response: str, correct: bool, answer: str
) -> None:
    assert grade(reference, response) == Grade(correct, answer)


def test_references_of_math500_given_back_are_right_and_its_neighbours_are_not(
    public: Callable[[str], Path],
) -> None:
    questions = read(public("math500/test.jsonl"))[::5]
    check_references(questions)
    assert all(
        grade(question.answer, f"Hence $\\boxed{{{question.answer}}}$.").correct
        for question in questions
    )
    neighbours = [
        grade(question.answer, f"\\boxed{{{other.answer}}}").correct
        for question, other in zip(questions, questions[1:])
        if question.answer != other.answer
    ]
    assert not any(neighbours)


def test_r3s_csv_and_math500s_jsonl_are_the_same_questions(public: Callable[[str], Path]) -> None:
    assert read(public("math500/r3_math_test_data.csv")) == read(public("math500/test.jsonl"))


def test_csv_jsonl_and_json_hold_the_same_questions(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv")
    (tmp_path / "bom.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.csv").read_bytes())
    objects = [
        {"level": 3, "problem": question.question, "answer": question.answer}
        for question in QUESTIONS
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, objects)) + "\n\n")
    (tmp_path / "a.json").write_text(
        json.dumps([{**each, "question": each["problem"]} for each in objects])
    )
    assert [read(tmp_path / name) for name in ("a.csv", "bom.csv", "a.jsonl", "a.json")] == 4 * [
        QUESTIONS
    ]
    (tmp_path / "number.json").write_text('[{"question": "q", "answer": 0}]')
    assert read(tmp_path / "number.json") == [Question("q", "0")]


def test_a_gsm8k_reference_is_what_stands_behind_the_four_signs(tmp_path: Path) -> None:
    answers = [
        "To answer this: 21 / 3 = 7 groups.\nThen 28 / 7 = <<28/7=4>>4 weeks\n#### 4",
        "Add the answer from above to $2.00: $<<4+2=6.00>>6.00\n#### 6 \n",
        "#### -1,080",
        "#### Step one\nis $3$",
        "4 #### 5",
    ]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"question": "q", "answer": answer}) + "\n" for answer in answers)
    )
    assert [question.answer for question in read(tmp_path / "a.jsonl")] == [
        "4",
        "6",
        "-1,080",
        *answers[3:],
    ]
    assert grade("-1,080", "\\boxed{-1080}").correct


def test_every_reference_of_gsm8k_is_its_number() -> None:
    path = ROOT.parent / "shared" / "data" / "gsm8k" / "test.jsonl"
    if not path.is_file():
        pytest.skip("needs all 1,319 test questions of GSM8K")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [question.answer for question in read(path)] == [
        row["answer"].split("#### ")[1] for row in rows
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "question,solution\nq,1\n",
            "row 1: no column 'answer'; there are question, solution; needed are question .or",
        ),
        ("a.csv", "text,answer\nq,1\n", "row 1: no column 'question'"),
        ("a.csv", "question,answer\nq,1\nr,\n", "row 2: answer is empty"),
        ("a.csv", "question,answer\nq\n", "row 1: answer is empty"),
        ("a.csv", "question,answer\n", "holds no questions"),
        ("a.csv", "", "holds no questions"),
        ("a.jsonl", "\n", "holds no questions"),
        ("a.jsonl", '{"question": "q", "answer": "1"}\n\n{"question": "q"', "a.jsonl:3: not JSON"),
        ("a.jsonl", '\n["q", "1"]', "a.jsonl:2: not an object"),
        ("a.json", '[["q", "1"]]', "row 1: not an object"),
        (
            "a.json",
            '{"question": "q", "answer": "1"}',
            "must be a .csv, a .jsonl or a .json file that holds a list",
        ),
        ("a.txt", "question,answer\nq,1\n", "must be a .csv, a .jsonl or a .json file"),
        ("a.csv", b"question,answer\n\xff,1\n", "a.csv: 'utf-8' codec can't decode"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_reference_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(
        ValueError, match="row 2: math-verify reads no answer in .*boxed{}.*: give LaTeX"
    ):
        check_references([QUESTIONS[0], Question("q", "\\boxed{}")])


COLUMNS = ("index", "text", "number")
AWKWARD = [
    "plain",
    'a "quoted", b',
    "two\nlines\n",
    '"\n"',
    "",
    "\r",
    "a\r\nb",
    ",,\n\n",
    "é 語 🙂",
    '""',
    "'\n",
    " end ",
]
AWKWARD_ROWS = [(index, text, index / 2) for index, text in enumerate(AWKWARD)]


def test_a_file_cut_at_any_byte_keeps_every_complete_row_and_goes_on_to_the_same_bytes(
    tmp_path: Path,
) -> None:
    path = tmp_path / "m.csv"
    with MetricsFile(path, COLUMNS) as metrics:
        metrics.begin()
        ends = [path.stat().st_size]
        for row in AWKWARD_ROWS:
            metrics.append(row)
            ends.append(path.stat().st_size)  # on the disk already
    whole = path.read_bytes()
    expected = [
        {"index": str(index), "text": text, "number": str(number)}
        for index, text, number in AWKWARD_ROWS
    ]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        kept = sum(end <= length for end in ends[1:])
        with MetricsFile(path, COLUMNS) as metrics:
            assert metrics.begin() == expected[:kept]
            assert path.read_bytes() == whole[: ends[kept]]
            for row in AWKWARD_ROWS[kept : kept + 1]:
                metrics.append(row)
        assert path.read_bytes() == whole[: ends[min(kept + 1, len(AWKWARD))]]


def test_a_nul_is_written_as_a_replacement_character(tmp_path: Path) -> None:
    with MetricsFile(tmp_path / "m.csv", COLUMNS) as metrics:
        metrics.begin()
        metrics.append((0, "a\0b", 1))
    assert rows_of(tmp_path / "m.csv")[0]["text"] == "a\ufffdb"


def test_a_run_killed_before_its_first_row_begins_again(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.touch()
    (tmp_path / ".m.csv.json").write_text('{"ru')
    with MetricsFile(path, COLUMNS) as metrics:
        metrics.expect(run=1)
        assert metrics.begin() == []
    assert rows_of(path) == []
    assert json.loads((tmp_path / "m.csv.json").read_text()) == {"run": {"run": 1}}


def test_a_file_in_use_is_refused_until_it_is_closed(tmp_path: Path) -> None:
    with (
        MetricsFile(tmp_path / "m.csv", COLUMNS),
        pytest.raises(ValueError, match="is being written by another process"),
    ):
        MetricsFile(tmp_path / "m.csv", COLUMNS)
    with MetricsFile(tmp_path / "m.csv", COLUMNS) as metrics:
        metrics.begin()


def test_another_run_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    run = {"data": "a", "engine": {"steps": 4, "sampler": {"seed": 0, "stop": ["x"]}, "new": None}}
    with MetricsFile(path, COLUMNS) as metrics:
        metrics.expect(**run)
        metrics.begin(note="kept")
        metrics.append((0, "a", 1))
    before = path.read_bytes(), path.with_name("m.csv.json").read_bytes()
    with MetricsFile(path, COLUMNS) as metrics:
        metrics.expect(data="a")
        with pytest.raises(
            ValueError,
            match=r"holds another run \(engine.steps was 4, is 5; engine.sampler.seed was 0, is "
            r"1\)",
        ):
            metrics.expect(engine={"steps": 5, "sampler": {"seed": 1, "stop": ["x"]}})
    assert before == (path.read_bytes(), path.with_name("m.csv.json").read_bytes())
    with MetricsFile(path, COLUMNS) as metrics:
        metrics.expect(**run)
        assert len(metrics.begin()) == 1
    with pytest.raises(ValueError, match="other columns"), MetricsFile(path, ("index",)) as metrics:
        metrics.begin()
    path.with_name("m.csv.json").write_text("[]")
    with pytest.raises(ValueError, match="does not say of which run"):
        MetricsFile(path, COLUMNS)
    path.with_name("m.csv.json").unlink()
    with pytest.raises(ValueError, match="no m.csv.json beside it"):
        MetricsFile(path, COLUMNS)


@pytest.mark.parametrize(("correct", "total"), [(0, 1), (0, 12), (12, 12), (3, 10), (250, 500)])
def test_the_interval_is_wilsons(correct: int, total: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    cells = {
        "seconds": "2.0",
        "prm_seconds": "0.5",
        "forwards": "4",
        "prm_calls": "3",
        "tokens": "7",
        "overlong": "",
    }
    text = summary(
        "m.csv", [{**cells, "correct": str(int(number < correct))} for number in range(total)]
    )
    low, high = stats.binomtest(correct, total).proportion_ci(0.95, "wilson")
    assert f"accuracy {correct / total:.3f}, 95 % interval {low:.3f} to {high:.3f}" in text
    assert "4.0 forwards, 3.0 PRM calls, 7.0 tokens, 2.000 s, of which 25.0 % in the PRM" in text


def test_questions_that_took_no_time_have_a_summary() -> None:
    row = dict.fromkeys(Row._fields, "0") | {"overlong": "skipped"}
    text = summary("m.csv", [row, row])
    assert "accuracy 0.000" in text and "2 did not fit" in text
    assert text.endswith("0.000 s, of which 0.0 % in the PRM")


@pytest.mark.parametrize("model", METHODS)
def test_every_option_of_the_model_is_a_flag(model: str) -> None:
    options = names(*option_classes(model))
    assert len({*options, *names(EvaluateConfig)}) == len(options) + len(fields(EvaluateConfig))
    given = [word for name in options for word in (f"--{name}", "1")]
    config, read = read_command_line(["--data", "a", "--output=b", "--model", model, *given])
    assert config == EvaluateConfig(data="a", output="b", model=model)
    assert read == dict.fromkeys(options, "1")


def command(tmp_path: Path, checkpoint: Path, **flags: str) -> list[str]:
    given = {
        "data": str(tmp_path / "data.csv"),
        "output": str(tmp_path / "m.csv"),
        "pretrained": str(checkpoint),
        **SHORT,
        **flags,
    }
    return [f"--{name}={value}" for name, value in given.items()]


def run(tmp_path: Path, checkpoint: Path, **flags: str) -> list[dict[str, str]]:
    assert main(command(tmp_path, checkpoint, **flags)) == 0
    return rows_of(tmp_path / flags.get("output", "m.csv"))


@pytest.mark.parametrize("chat", ["auto", "false"])
def test_rows_are_engines_answers_to_the_prompts_of_the_lm_eval_task(
    tmp_path: Path, tiny_checkpoint: Path, chat: str
) -> None:
    write_csv(tmp_path / "data.csv")
    rows = run(
        tmp_path, tiny_checkpoint, chat=chat, instruction=mathematics.INSTRUCTION, batch_size="4"
    )
    rows.sort(key=lambda row: row["index"])
    yaml = (ROOT / "configs" / "lmeval" / "math_csv_local.yaml").read_text()
    (task,) = (line for line in yaml.splitlines() if line.startswith("doc_to_text"))
    template = json.loads(task.removeprefix("doc_to_text: "))
    engine = Engine(pretrained=str(tiny_checkpoint), gen_length=8, steps=4, temperature=1.0)
    prompts = [template.replace("{{question}}", question.question) for question in QUESTIONS]
    if chat == "auto":
        prompts = [engine.render_chat([{"role": "user", "content": prompt}]) for prompt in prompts]
    expected = dict(engine.generate([Request(prompt, engine.sampler) for prompt in prompts]))
    for index, (row, question) in enumerate(zip(rows, QUESTIONS, strict=True)):
        graded = grade(question.answer, expected[index].text)
        assert (row["index"], row["reference"], row["response"]) == (
            str(index),
            question.answer,
            expected[index].text,
        )
        assert (row["correct"], row["answer"]) == (str(int(graded.correct)), graded.answer)
        counts = expected[index].num_forwards, expected[index].num_tokens, 0
        assert (row["forwards"], row["tokens"], row["prm_calls"]) == tuple(map(str, counts))
    assert len({row["id"] for row in rows}) == len(set(QUESTIONS))


@pytest.mark.slow
def test_a_process_reward_model_reads_the_bare_question_unless_told_otherwise(
    tmp_path: Path,
) -> None:
    puzzles = [problem.puzzle for problem in sudoku.problems("test", 8)]
    write_csv(tmp_path / "data.csv", [Question(puzzle, "1") for puzzle in puzzles])
    flags = dict(
        model="llada_prm",
        gen_length="16",
        method="vanilla",
        instruction="4321...2.......=",
        chat="false",
    )

    def written(**flags: str) -> list[tuple[str, str, str]]:
        rows = sorted(run(tmp_path, TINY, **flags), key=lambda row: row["index"])
        return [(row["response"], row["forwards"], row["prm_calls"]) for row in rows]

    def expected(**options: str) -> list[tuple[str, str, str]]:
        engine = Engine(
            "llada_prm", gen_length=16, steps=4, temperature=1.0, method="vanilla", **options
        )
        found = dict(
            engine.generate(
                [Request(f"{puzzle}\n4321...2.......=", engine.sampler) for puzzle in puzzles]
            )
        )
        return [
            (found[index].text, str(found[index].num_forwards), str(found[index].num_prm_calls))
            for index in range(8)
        ]

    assert written(**flags) == expected(question_pattern="(.*)\n4321") != expected()
    assert (
        written(**flags, question_pattern="^(.*)$", output=str(tmp_path / "whole.csv"))
        == expected()
    )
    assert all(int(row["prm_calls"]) > 4 for row in rows_of(tmp_path / "m.csv"))


def test_an_interrupted_run_gives_the_same_table_repeats_of_a_question_included(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    write_csv(tmp_path / "data.csv")
    whole = run(tmp_path, tiny_checkpoint)
    # repeats of a question differ
    assert len({row["response"] for row in whole if row["index"] in "024"}) == 3
    written = (tmp_path / "m.csv").read_bytes()
    for length in range(0, len(written), 61):
        (tmp_path / "m.csv").write_bytes(written[:length])
        assert run(tmp_path, tiny_checkpoint) == whole


def test_a_finished_file_is_summed_up_again_and_left_as_it_is(
    tmp_path: Path, tiny_checkpoint: Path, capsys
) -> None:
    write_csv(tmp_path / "data.csv")
    run(tmp_path, tiny_checkpoint)
    told, written = capsys.readouterr().out, (tmp_path / "m.csv").read_bytes()
    run(tmp_path, tiny_checkpoint, batch_size="3")  # the batch size is no part of a run's identity
    assert capsys.readouterr().out == told and (tmp_path / "m.csv").read_bytes() == written
    assert told.splitlines()[0].startswith(f"{tmp_path / 'm.csv'}: 6 questions, accuracy ")
    assert len(told.splitlines()) == 2


def test_a_limit_may_be_raised_and_lowered(tmp_path: Path, tiny_checkpoint: Path, capsys) -> None:
    write_csv(tmp_path / "data.csv")
    first = run(tmp_path, tiny_checkpoint, limit="3")
    assert sorted(row["index"] for row in first) == ["0", "1", "2"]
    rest = run(tmp_path, tiny_checkpoint)
    assert rest[:3] == first and sorted(row["index"] for row in rest) == list("012345")
    whole = run(tmp_path, tiny_checkpoint, output=str(tmp_path / "other.csv"))
    index = itemgetter("index")
    assert sorted(rest, key=index) == sorted(whole, key=index)
    capsys.readouterr()
    run(tmp_path, tiny_checkpoint, limit="2")
    assert ": 2 questions, " in capsys.readouterr().out


def test_a_run_that_failed_before_its_first_row_does_not_bind_the_next(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    write_csv(tmp_path / "data.csv")
    with pytest.raises(SystemExit, match="exceed the context"):
        main(command(tmp_path, tiny_checkpoint, gen_length="128"))
    assert len(run(tmp_path, tiny_checkpoint, limit="2")) == 2
    assert (
        json.loads((tmp_path / "m.csv.json").read_text())["run"]["engine"]["sampler"]["gen_length"]
        == 8
    )


def test_a_row_of_another_question_is_noticed(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_csv(tmp_path / "data.csv")
    run(tmp_path, tiny_checkpoint, limit="1")
    header, row = (tmp_path / "m.csv").read_text().splitlines()
    (tmp_path / "m.csv").write_text("\n".join([header, row, row, ""]))
    with pytest.raises(SystemExit, match="its row with index 0 is there twice"):
        main(command(tmp_path, tiny_checkpoint))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"stepz": "4"}, "unknown llada option 'stepz' .did you mean 'steps'"),
        ({"router": "x"}, "unknown llada option 'router'"),
        ({"model": "lada"}, "model must be one of llada, llada_ups"),
        ({"steps": "many"}, "steps must be a whole number, got 'many'"),
        ({"chat": "yes"}, "chat must be one of 'auto', 'true', 'false', got 'yes'"),
        ({"limit": "0"}, "limit must be at least 1"),
        ({"gen_length": "500"}, "exceed the context of 128 tokens"),
        ({"pretrained": "/no/such/folder"}, "no such folder"),
        (
            {"data": "/no/file.csv", "pretrained": "/no/such/folder"},
            "No such file or directory: '/no/file.csv'",
        ),
        ({"output": "{tmp}", "pretrained": "/no/such/folder"}, "Is a directory"),
        ({"output": "/proc/no/m.csv", "pretrained": "/no/such/folder"}, "/proc/no"),
    ],
)
def test_mistakes_end_the_command_with_one_line(
    tmp_path: Path, tiny_checkpoint: Path, flags: dict[str, str], message: str
) -> None:
    write_csv(tmp_path / "data.csv")
    given = {name: value.format(tmp=tmp_path) for name, value in flags.items()}
    with pytest.raises(SystemExit, match=f"error: .*{message}") as caught:
        main(command(tmp_path, tiny_checkpoint, **given))
    assert "\n" not in str(caught.value)


def test_words_that_belong_to_no_flag_and_missing_flags_are_refused() -> None:
    with pytest.raises(SystemExit, match="'c d' belongs to no flag"):
        main(["--data", "a", "--output", "b", "c d"])
    with pytest.raises(SystemExit, match="required: --output"):
        main(["--data", "a"])


def test_without_math_verify_the_install_line_comes_before_any_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(tmp_path / "data.csv")
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(
        SystemExit, match=r"needs math-verify: pip install 'llada-plugins\[grading\]'"
    ):
        main(command(tmp_path, Path("/no/such/folder")))
    assert not (tmp_path / "m.csv").exists()


def test_other_data_is_refused_before_any_weights(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_csv(tmp_path / "data.csv")
    run(tmp_path, tiny_checkpoint, limit="1")
    write_csv(tmp_path / "data.csv", QUESTIONS[1:])
    with pytest.raises(SystemExit, match="holds another run .data was"):
        main(command(tmp_path, Path("/no/such/folder")))
    write_csv(tmp_path / "data.csv")
    with pytest.raises(SystemExit, match="holds another run .engine.sampler.steps was 4, is 8"):
        main(command(tmp_path, tiny_checkpoint, steps="8"))


@pytest.mark.slow
def test_a_killed_process_loses_and_doubles_nothing(tmp_path: Path) -> None:
    questions = [
        Question(f"{number % 9} + {number % 4}?", str(number % 9 + number % 4))
        for number in range(20)
    ]
    write_csv(tmp_path / "data.csv", questions)
    tiny = ROOT / "llada_plugins" / "tiny" / "sudoku4"
    length = {"gen_length": "64", "steps": "64"}
    output = tmp_path / "m.csv"
    words = [sys.executable, "-m", "llada_plugins.evaluate", *command(tmp_path, tiny, **length)]
    kills: list[int] = []
    while True:
        process = subprocess.Popen(
            words,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        goal = sum(kills[-1:]) + 7
        while process.poll() is None and (
            not output.exists() or output.read_bytes().count(b"\n") <= goal
        ):
            time.sleep(0.01)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills.append(len(rows_of(output)))
    assert process.returncode == 0 and kills and kills == sorted(kills)
    assert ": 20 questions, " in process.stdout.read()
    rows = rows_of(output)
    whole = run(tmp_path, tiny, **length, output=str(tmp_path / "whole.csv"))
    assert set(rows[0]) == set(Row._fields) - set(TIMES)
    assert sorted(rows, key=lambda row: row["index"]) == sorted(whole, key=lambda row: row["index"])


@pytest.mark.parametrize(
    "raised, status, words",
    [
        (KeyboardInterrupt(), 130, "run the same command to go on"),
        (
            ScoreError("no number came out for solution 1"),
            "error: no number came out for solution 1",
            "",
        ),
    ],
)
def test_what_interrupts_a_run_ends_it_in_one_line(
    monkeypatch, capsys, tmp_path, raised, status, words
):
    def interrupted(*_):
        raise raised

    monkeypatch.setattr("llada_plugins.evaluate.evaluate", interrupted)
    try:
        found = main(["--data", "questions.csv", "--output", str(tmp_path / "metrics.csv")])
    except SystemExit as error:
        found = error.code
    assert found == status and words in capsys.readouterr().err
