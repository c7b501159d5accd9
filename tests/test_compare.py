"""The comparing command: agreement of two result folders, whichever harness wrote them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llada_plugins.compare import main
from llada_plugins.reports.answers import read_answers

ANSWERS = {"1+1=": "2", "2+2=": "4"}


def lmeval_run(folder: Path, answers: dict[str, str], accuracy: float = 1.0) -> Path:
    rows = [
        {
            "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": {}}},
            "resps": [[text]],
            "metrics": ["acc"],
            "acc": accuracy,
        }
        for prompt, text in answers.items()
    ]
    path = folder / "model" / "samples_task_2026.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(map(json.dumps, rows)))
    return folder


def opencompass_run(
    folder: Path, answers: dict[str, str], accuracy: float = 100.0, stats: bool = False
) -> Path:
    rows = {
        str(number): {
            "origin_prompt": prompt,
            "prediction": {"prediction": text, "nfe": 2} if stats else text,
        }
        for number, (prompt, text) in enumerate(answers.items())
    }
    for kind, content in (("predictions", rows), ("results", {"accuracy": accuracy})):
        path = folder / "20261120" / kind / "model" / "task.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("stats", [False, True])
def test_equal_answers_and_accuracies_agree(tmp_path: Path, stats: bool) -> None:
    assert (
        main(
            [
                str(lmeval_run(tmp_path / "a", ANSWERS)),
                str(opencompass_run(tmp_path / "b", ANSWERS, stats=stats)),
            ]
        )
        == 0
    )


@pytest.mark.parametrize(
    ("answers", "accuracy"),
    [({**ANSWERS, "2+2=": "5"}, 100.0), ({"1+1=": "2"}, 100.0), (ANSWERS, 50.0)],
)
def test_another_text_a_missing_prompt_or_another_accuracy_differ(
    tmp_path: Path, answers: dict[str, str], accuracy: float
) -> None:
    assert (
        main(
            [
                str(lmeval_run(tmp_path / "a", ANSWERS)),
                str(opencompass_run(tmp_path / "b", answers, accuracy)),
            ]
        )
        == 1
    )


def test_differing_prompts_are_shown_in_the_order_of_the_first_run(tmp_path, capsys) -> None:
    answers = {f"{number}+1=": "right" for number in range(9)}
    first = lmeval_run(tmp_path / "a", answers)
    second = opencompass_run(tmp_path / "b", dict.fromkeys(reversed(answers), "wrong"))
    assert main([str(first), str(second)]) == 1
    shown = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()[3:]]
    assert shown == [f"  '{number}+1='" for number in range(5)]


def test_one_models_folder_below_predictions_is_read(tmp_path: Path) -> None:
    place = opencompass_run(tmp_path / "b", ANSWERS) / "20261120" / "predictions" / "model"
    assert main([str(lmeval_run(tmp_path / "a", ANSWERS)), str(place)]) == 0


def test_folders_without_answers_end_with_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ([str(tmp_path), str(tmp_path)], [str(tmp_path / "absent"), str(tmp_path)]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert capsys.readouterr().err.count("\n") == 1


def test_an_answer_with_a_line_separator_of_unicode_is_one_line_of_the_file(
    tmp_path: Path,
) -> None:
    """lm-eval writes JSON without escapes, and str.splitlines cuts at U+2028."""
    (tmp_path / "samples_task.jsonl").write_text(
        json.dumps(
            {"arguments": {"gen_args_0": {"arg_0": "1+1="}}, "resps": [["2\u2028\x85."]]},
            ensure_ascii=False,
        ),
        encoding="utf-8",
    )
    assert read_answers(tmp_path).texts == {"1+1=": "2\u2028\x85."}


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"arguments": ', "samples_task.jsonl:2: not JSON: "),
        ("[]", "samples_task.jsonl:2: not a generated answer of lm_eval"),
        ('{"arguments": {"gen_args_0": {"arg_0": "q", "arg_1": "a"}}, "resps": []}', ":2: not a"),
    ],
)
def test_a_line_that_holds_no_answer_is_refused_by_its_number(
    tmp_path: Path, line: str, message: str, capsys
) -> None:
    good = lmeval_run(tmp_path / "a", ANSWERS)
    bad = tmp_path / "samples_task.jsonl"
    bad.write_text("\n" + line)
    with pytest.raises(SystemExit) as ended:
        main([str(good), str(bad)])
    assert ended.value.code == 2 and message in capsys.readouterr().err
