"""OpenCompass: a question asked n times, in every stock way, gets n independent answers
that depend on no batch, order, split or resume.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

pytest.importorskip("opencompass")

from datasets import Dataset
from mmengine.config import ConfigDict
from opencompass.datasets import MATHEvaluator
from opencompass.datasets.base import BaseDataset
from opencompass.openicl import icl_inferencer as stock
from opencompass.openicl.icl_evaluator import AccEvaluator
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_raw_prompt_template import RawPromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever
from opencompass.partitioners import NumWorkerPartitioner, SizePartitioner
from opencompass.tasks.openicl_infer import OpenICLInferTask

from llada_plugins.engine.engine import Request
from llada_plugins.opencompass_models import LLaDA
from llada_plugins.sampling.config import SamplerConfig

OPTIONS = dict(gen_length=8, steps=2, temperature=1.0)
QUESTIONS = ("ab", "c", "ab", "dd", "e")  # the first comes twice: two rows with one prompt


class Rows(BaseDataset):
    """Five questions; num_repeats: each so many times in a row, as the data sets of
    code benchmarks do.
    """

    @staticmethod
    def load(num_repeats: int = 1, marked: bool = False) -> Dataset:
        return Dataset.from_list(
            [
                {"question": question, "answer": "x", **(dict(mark=str(number)) if marked else {})}
                for number, question in enumerate(
                    question for question in QUESTIONS for _ in range(num_repeats)
                )
            ]
        )


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> LLaDA:
    return LLaDA(str(tiny_checkpoint), **OPTIONS)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> None:
    """Stock code leaves folders in the working directory."""
    monkeypatch.chdir(tmp_path)


def entry(
    n: int = 1,
    *,
    inferencer: dict | None = None,
    test_range: str = "",
    abbr: str = "rows",
    **options,
) -> ConfigDict:
    """A data set of a config file."""
    reader = dict(
        input_columns=["question"],
        output_column="answer",
        **(dict(test_range=test_range) if test_range else {}),
    )
    return ConfigDict(
        abbr=abbr,
        type=Rows,
        n=n,
        k=1,
        reader_cfg=reader,
        infer_cfg=dict(
            prompt_template=dict(type=PromptTemplate, template="{question}"),
            retriever=dict(type=ZeroRetriever),
            inferencer={**dict(type=stock.GenInferencer, max_out_len=8), **(inferencer or {})},
        ),
        eval_cfg=dict(evaluator=dict(type=AccEvaluator)),
        **options,
    )


def run(
    model: LLaDA,
    folder: Path,
    *datasets: ConfigDict,
    batch_size: int = 4,
    partitioner: type | None = None,
    **options,
) -> list:
    """The predictions of a stock inference task in the order of the rows; with a
    partitioner, of all its tasks.
    """
    models = [ConfigDict(type=LLaDA, abbr="tiny", path="x", batch_size=batch_size)]
    if partitioner:
        cut = partitioner(
            str(folder / "predictions"), dataset_size_path=str(folder / "sizes.json"), **options
        )
        tasks = cut.partition(
            [dict(models=models, datasets=list(datasets))], str(folder), str(folder / "predictions")
        )
    else:
        tasks = [ConfigDict(models=models, datasets=[list(datasets)], work_dir=str(folder))]
    for task in tasks:
        OpenICLInferTask(task).run(cur_model=model, cur_model_abbr="tiny")
    files = sorted(
        (folder / "predictions" / "tiny").glob("*.json"),
        key=lambda path: (len(path.name), path.name),
    )
    rows = [json.loads(path.read_text()) for path in files]
    return [part[str(number)]["prediction"] for part in rows for number in range(len(part))]


@pytest.fixture(scope="module")
def expected(model, tmp_path_factory) -> list:
    """Three repeats of the data set, in one run."""
    return run(model, tmp_path_factory.mktemp("whole"), entry(3))


def test_repeats_of_a_data_set_and_rows_with_one_prompt_get_answers_of_their_own(expected) -> None:
    assert len(expected) == 15 and len(set(expected)) == 15


def at_once(
    model: LLaDA, prompts: Iterable[str], sampler: SamplerConfig | None = None
) -> list[str]:
    """The engine's answers to all prompts in one call: it numbers the repeats itself."""
    found = dict(
        model.engine.generate(
            [Request(prompt, sampler or model.engine.sampler) for prompt in prompts]
        )
    )
    return [found[number].text for number in sorted(found)]


def test_the_answers_are_the_engines_to_the_whole_data_set_at_once(model, expected) -> None:
    assert expected == at_once(model, QUESTIONS * 3)


@pytest.mark.parametrize(
    "options",
    [
        dict(batch_size=1),
        dict(batch_size=15),
        dict(partitioner=NumWorkerPartitioner, num_worker=4, min_task_size=1),
        dict(partitioner=NumWorkerPartitioner, num_worker=2, min_task_size=1),
        dict(partitioner=SizePartitioner, max_task_size=60, gen_task_coef=20),
    ],
    ids=["one by one", "at once", "4 parts", "2 parts", "by size"],
)
def test_neither_batch_nor_partitioner_change_an_answer(model, tmp_path, expected, options) -> None:
    assert run(model, tmp_path, entry(3), **options) == expected


def asked_directly(
    inferencer: type, model: LLaDA, folder: Path, template: object, **options
) -> list:
    """The predictions of a stock inferencer without a task, as a script of the user's
    may run it.
    """
    data = Rows(
        abbr="rows", n=3, reader_cfg=dict(input_columns=["question"], output_column="answer")
    )
    made = inferencer(model=model, max_out_len=8, output_json_filepath=str(folder), **options)
    made.inference(
        ZeroRetriever(data),
        prompt_template=template,
        output_json_filepath=str(folder),
        output_json_filename="out.json",
    )
    rows = json.loads((folder / "out.json").read_text())
    return [rows[str(number)]["prediction"] for number in range(15)]


def test_a_pool_of_threads_changes_no_answer(model, tmp_path, expected) -> None:
    question = PromptTemplate("{question}")
    assert (
        asked_directly(stock.ParallelGenInferencer, model, tmp_path, question, max_infer_workers=3)
        == expected
    )


def test_dialogues_filled_by_threads_get_the_answers_of_their_rows(model, tmp_path) -> None:
    turns = RawPromptTemplate(
        [
            dict(role="user", content="{question}"),
            dict(role="assistant", content=""),
            dict(role="user", content="?"),
            dict(role="assistant", content=""),
        ]
    )
    found = asked_directly(
        stock.GenInferencer, model, tmp_path, turns, multiround=True, batch_size=4
    )
    assert len({answer for answers in found for answer in answers}) == 30
    for options in (dict(multiround=True, batch_size=1), dict(multiround=True, batch_size=7)):
        assert asked_directly(stock.GenInferencer, model, tmp_path, turns, **options) == found
    assert [answers[0] for answers in found] == at_once(model, QUESTIONS * 3)


def test_a_part_of_a_data_set_with_a_test_range_is_a_part_of_the_same_answers(
    model, tmp_path, expected
) -> None:
    """As partitioners write parts; they themselves count such a data set wrongly."""
    parts = [
        entry(3, test_range=f"[2:-2][{4 * part}:{4 * part + 4}]", abbr=f"rows_{part}")
        for part in range(3)
    ]
    assert run(model, tmp_path, *parts) == expected[2:-2]


def test_a_resumed_run_ends_with_the_same_answers(model, tmp_path, expected) -> None:
    folder = tmp_path / "predictions" / "tiny"
    folder.mkdir(parents=True)
    lines = [
        json.dumps({"idx": str(number), "origin_prompt": "", "prediction": expected[number]}) + "\n"
        for number in range(7)
    ]
    (folder / "tmp_rows.jsonl").write_text("".join(lines))
    assert run(model, tmp_path, entry(3)) == expected


def test_more_repeats_keep_the_answers_of_fewer(model, tmp_path, expected) -> None:
    assert run(model, tmp_path, entry(2)) == expected[:10]


def test_data_sets_that_repeat_by_name_or_by_rows_get_independent_answers(
    model, tmp_path, expected
) -> None:
    named = run(
        model, tmp_path / "named", *(entry(abbr=f"rows-run{number}") for number in range(3))
    )  # as aime2024_*_repeat8
    doubled = run(model, tmp_path / "doubled", entry(num_repeats=3))  # as humaneval_repeat10
    assert len(set(named)) == len(set(doubled)) == 15 and not set(named) & set(expected)
    assert doubled == at_once(model, [question for question in QUESTIONS for _ in range(3)])


def test_copies_that_no_number_tells_apart_are_refused(model, tmp_path) -> None:
    with pytest.raises(
        ValueError,
        match="data sets one and two ask the same: .* end each abbr with a number, as in "
        "one-run0, or write n=2",
    ):
        run(model, tmp_path, entry(abbr="one"), entry(abbr="two"))


def test_rows_of_one_prompt_get_answers_of_their_own_whatever_their_other_columns(
    model, tmp_path
) -> None:
    """The template reads `question` alone; where nothing is known of the template, the
    place in the data set counts.
    """
    data = entry(num_repeats=2, marked=True)
    assert len(set(run(model, tmp_path / "read", data))) == 10
    data = entry(num_repeats=2, marked=True)
    data.infer_cfg.inferencer = dict(type=stock.ChatInferencer, max_out_len=8)
    assert len(set(run(model, tmp_path / "chat", data))) == 10


def test_greedy_repeats_are_equal(tiny_checkpoint, tmp_path) -> None:
    answers = run(LLaDA(str(tiny_checkpoint), gen_length=8, steps=2), tmp_path, entry(2))
    assert answers[:5] == answers[5:]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_self_consistency_samples_independently_as_its_generation_kwargs_say(
    tiny_checkpoint, tmp_path, batch_size
) -> None:
    greedy = LLaDA(str(tiny_checkpoint), **{**OPTIONS, "temperature": 0})
    asked = dict(
        type=stock.SCInferencer,
        sc_size=3,
        infer_type="sc",
        generation_kwargs=dict(do_sample=True, temperature=0.7, top_k=40),
    )
    found = run(greedy, tmp_path, entry(inferencer=asked), batch_size=batch_size)
    assert [len(set(samples)) for samples in found] == [3] * 5
    each = [question for question in QUESTIONS for _ in range(3)]
    assert sum(found, []) == at_once(
        greedy, each, greedy.engine.sampler_for(dict(temperature=0.7, top_k=40))
    )


def test_num_return_sequences_gives_lists_of_independent_answers(tiny_checkpoint, tmp_path) -> None:
    model = LLaDA(str(tiny_checkpoint), **OPTIONS, generation_kwargs=dict(num_return_sequences=3))
    found = run(model, tmp_path / "together", entry())
    assert [len(samples) for samples in found] == [3] * 5 and len(set(sum(found, []))) == 15
    assert run(model, tmp_path / "alone", entry(), batch_size=1) == found
    assert sum(found, []) == at_once(model, [question for question in QUESTIONS for _ in range(3)])


@pytest.mark.parametrize(
    ("asked", "temperature"),
    [
        ({}, 0.5),
        (dict(temperature=0.9), 0.9),
        (dict(do_sample=True), 0.5),
        (dict(do_sample=False, temperature=0.9, top_k=3), 0.0),
        (dict(do_sample="false", temperature=0.9), 0.0),
    ],
    ids=str,
)
def test_generation_kwargs_of_a_call_mean_what_they_mean_elsewhere(
    tiny_checkpoint, asked, temperature
) -> None:
    from llada_plugins.harness.opencompass_options import sampler_options

    model = LLaDA(str(tiny_checkpoint), gen_length=8, temperature=0.5)
    assert (
        model.engine.sampler_for(sampler_options(asked, model.engine.given)).temperature
        == temperature
    )
    assert sampler_options(dict(do_sample=True), {}) == dict(temperature=1.0)
    for wrong, message in (
        (dict(num_beams=3), "num_beams=3 has no meaning"),
        (dict(temprature=1), "temprature"),
        (dict(num_return_sequences=0), "num_return_sequences must be a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(["ab"], 8, **wrong)


SUDOKUS = (
    ("41..2...1....4..=", "4132231412433421"),
    ("..313.4...23.3.4=", "4231314214232314"),
    ("......3..2......=", "2314413212433421"),
    ("..1.1...4....241=", "2314143241233241"),
    ("12.3.3.23..1..3.=", "1243431234212134"),
    ("3......4........=", "3412123443212143"),
)


class Sudokus(BaseDataset):
    """Six sudokus of 4 x 4."""

    @staticmethod
    def load() -> Dataset:
        return Dataset.from_list(
            [{"question": question, "answer": answer} for question, answer in SUDOKUS]
        )


def test_independent_samples_score_what_they_score_in_the_stock_evaluator(tmp_path) -> None:
    """The shipped model at temperature 1.5 solves some sudokus in a part of four samples;
    equal answers gave every sudoku all or none.
    """
    data = entry(4)
    data.type = Sudokus
    predictions = run(LLaDA(gen_length=16, steps=4, temperature=1.5), tmp_path, data)
    asked = Sudokus(
        abbr="rows", n=4, reader_cfg=dict(input_columns=["question"], output_column="answer")
    ).test
    scores = MATHEvaluator(version="v2").evaluate(
        [1, 4], 4, asked, predictions=predictions, references=asked["answer"]
    )
    right = Counter(
        row["question"]
        for row, prediction in zip(asked, predictions)
        if prediction.strip() == row["answer"]
    )
    counts = [right[question] for question, _ in SUDOKUS]
    assert not set(counts) <= {0, 4}
    assert scores["accuracy (4 runs average)"] == pytest.approx(100 * sum(counts) / 24)
    assert scores["G-Pass@4_1.0"] == pytest.approx(100 * counts.count(4) / 6)
    # of all four drawn: twice the mean over thresholds above one half
    assert scores["mG-Pass@4"] == pytest.approx(
        100 * sum(max(0, each - 2) / 2 for each in counts) / 6
    )
