"""record=trajectory: what is written down of an engine's answers, and what is read of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import recording as benchmark
from llada_plugins.engine import recording
from llada_plugins.engine.engine import Engine, Request
from llada_plugins.engine.record_options import SUFFIX
from llada_plugins.engine.request import QuestionId
from llada_plugins.files import gzip_lines
from llada_plugins.files.csv_journal import MetricsFile
from llada_plugins.models import text
from llada_plugins.reports.recorded import changes, events_of, names, read, read_runs
from llada_plugins.sampling.frames import frames
from llada_plugins.sampling.trace import KEPT, Judged, Pass
from llada_plugins.tasks import sudoku

pytestmark = pytest.mark.floats

CONFIGS = Path(__file__).parents[1] / "configs"
PROMPTS = [problem.puzzle for problem in sudoku.problems("test", 6)]
SAMPLER = dict(gen_length=16, steps=8)


def engine(path: Path, kind: str = "llada", /, **options) -> Engine:
    return Engine(
        kind,
        device="cpu",
        batch_size=4,
        record="trajectory",
        record_file=str(path),
        **{**SAMPLER, **options},
    )


def requests(engine: Engine, number: int = len(PROMPTS)) -> list[Request]:
    return [
        Request(prompt, engine.sampler, id=QuestionId("sudoku4", doc_id))
        for doc_id, prompt in enumerate(PROMPTS[:number])
    ]


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """Of the tiny model, a process reward model and its own policy head: three runs."""
    path = tmp_path_factory.mktemp("recorded") / SUFFIX
    for method, options in {
        "llada": dict(block_length=4),
        "llada_ups": dict(revise=True, steps=4, confidence_source="random"),
        "llada_prm": dict(block_length=4, method="backmask"),
    }.items():
        made = engine(path, method, **options)
        dict(made.generate(requests(made)))
    return path


def test_a_line_is_the_answer_that_the_engine_gives_without_recording(file):
    for run in read(file):
        line = run.answers[0].line
        options = {**line["sampler"], **line["method_options"]}
        plain = Engine(line["method"], device="cpu", batch_size=4, **options)
        found = dict(plain.generate([Request(prompt, plain.sampler) for prompt in PROMPTS]))
        assert sorted(answer.line["doc_id"] for answer in run.answers) == [*range(len(PROMPTS))]
        for answer in run.answers:
            line, completion = answer.line, found[answer.line["doc_id"]]
            assert line["text"] == completion.text and line["prompt"] == PROMPTS[line["doc_id"]]
            assert line["num_forwards"] == completion.num_forwards
            assert line["num_prm_calls"] == completion.num_prm_calls
            assert frames(events_of(line))[-1].tokens.tolist() == line["answer"]
            last = [str(token) for token in line["answer"]]
            assert "".join(line["pieces"][token] for token in last) == line["text"]


def test_the_policy_and_the_scores_of_a_process_reward_model_are_written_down(file):
    plain, ups, prm = read(file)
    for run, has_policy, has_scores in (
        (plain, False, False),
        (ups, True, False),
        (prm, False, True),
    ):
        for answer in run.answers:
            events = events_of(answer.line)
            passes = [event for event in events if isinstance(event, Pass)]
            assert all((each.policy is not None) == has_policy for each in passes)
            judged = [event for event in events if isinstance(event, Judged)]
            assert len(judged) == answer.line["num_prm_calls"]
            assert bool(judged) == has_scores
            of = [each["of"] for each in answer.line["events"] if each["kind"] == "judged"]
            assert all(isinstance(events[place], Pass) for place in of)
    assert names([plain, ups, prm]) != names([plain])


def test_confidence_is_the_probability_of_each_kept_token(file):
    for answer in read(file)[0].answers:
        for each in events_of(answer.line):
            kept = each.flags & KEPT > 0
            assert (each.score[kept] <= 1).all() and (each.score[kept] > 0).all()
            assert kept.sum(0).tolist() == [1] * kept.shape[1]


def test_tokens_that_were_taken_back_are_found_again(file):
    corrected = 0
    for answer in read(file)[1].answers:
        found = frames(events_of(answer.line))
        gone = changes(found)
        assert sum((frame.tokens < 0).sum() for frame in found[1:]) == sum(
            len(found[0].tokens) - 4 * number for number in range(1, len(found))
        )
        for change in gone:
            assert found[change.step - 1].tokens[change.position] == change.first
            assert found[change.step].tokens[change.position] == -1
            assert answer.line["answer"][change.position] == change.final
        corrected += any(change.first != change.final for change in gone)
    assert corrected


def test_a_resumed_run_appends_and_the_last_answer_to_a_question_counts(tmp_path):
    path = tmp_path / SUFFIX
    for number in (2, 3):
        made = engine(path)
        dict(made.generate(requests(made, number)))
    path.write_bytes(path.read_bytes()[:-7])
    made = engine(path)
    dict(made.generate(requests(made, 1)))
    [run] = read(path)
    assert gzip_lines.count(path).lines == 6 and run.damaged == 1
    assert [answer.line["doc_id"] for answer in run.answers] == [1, 0]  # the third was cut


def test_record_samples_bounds_a_file_whoever_appends_to_it(tmp_path):
    path = tmp_path / SUFFIX
    for num in (3, 6):  # the second engine goes on in the file of the first
        made = engine(path, record_samples=4)
        dict(made.generate(requests(made, num)))
    [run] = read(path)
    assert gzip_lines.count(path).lines == 4
    assert sorted(answer.line["doc_id"] for answer in run.answers) == [0, 1, 2]  # 0 came twice


def test_record_tokens_leaves_out_the_blocks_that_begin_after_it(tmp_path):
    path = tmp_path / SUFFIX
    for tokens, expected in ((4, 1), (5, 2), (16, 4)):
        path.unlink(missing_ok=True)
        made = engine(path, record_tokens=tokens, block_length=4)
        texts = {number: each.text for number, each in made.generate(requests(made))}
        [run] = read(path)
        for answer in run.answers:
            line = answer.line
            passes = [event for event in events_of(line) if isinstance(event, Pass)]
            assert [each.start for each in passes] == [0, 4, 8, 12][:expected]
            assert line["cut"] == (expected < 4)
            assert len(line["answer"]) == 16 and line["text"] == texts[line["doc_id"]]


def test_a_long_prompt_is_written_down_by_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "SHOWN", 10)
    made = engine(tmp_path / SUFFIX)
    dict(made.generate(requests(made, 1)))
    [run] = read(tmp_path / SUFFIX)
    assert run.answers[0].line["prompt"] == PROMPTS[0][-10:]


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(record="trajectory"), "does not know where to write: give record_file=FILE"),
        (dict(record_file=SUFFIX), "has no effect without record=trajectory"),
        (dict(record="trajectory", record_file="steps.gz"), "its name must end in"),
        (dict(record="trajectory", record_file=SUFFIX, record_samples=0), "must be at least 1"),
        (dict(record="trajectory", record_file=SUFFIX, record_tokens=0), "must be at least 1"),
        (dict(record="steps"), "record must be one of 'trajectory', got 'steps'"),
    ],
    ids=str,
)
def test_mistakes_are_refused_before_any_weights_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as refused:
        Engine("llada", pretrained="no such checkpoint", **options)
    assert "\n" not in str(refused.value)


def test_a_space_before_a_token_is_part_of_its_text():
    def stripping(ids, **kwargs):
        return "".join([" a", " b", "c"][each] for each in ids).removeprefix(" ")

    def keeping(ids, **kwargs):
        return "".join([" a", " b", "c"][each] for each in ids)

    for decode in (stripping, keeping):
        tokenizer = SimpleNamespace(decode=decode)
        assert [text.piece(tokenizer, token) for token in range(3)] == [" a", " b", "c"]


def test_its_benchmark_decodes_the_same_answers_both_ways(tmp_path, capsys):
    """Times are not asserted."""
    path = tmp_path / "found.json"
    few = ["--models", "tiny", "--batch_sizes", "2", "--repetitions", "1", "--json", str(path)]
    assert benchmark.main(few) == 0
    [row] = json.loads(path.read_text())["rows"]
    assert (row["model"], row["batch_size"], row["same_answers"]) == ("tiny", 2, True)
    assert "| tiny | 2 |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="error: models must be among tiny, 512x8, got 8b"):
        benchmark.main(["--models", "8b"])


# ---- both harnesses


def test_lm_eval_writes_beside_its_samples_and_its_verdicts_are_found(tmp_path):
    pytest.importorskip("lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    tracker = EvaluationTracker(output_path=str(tmp_path))
    found = simple_evaluate(
        model="llada",
        model_args="record=trajectory,device=cpu",
        tasks=["sudoku4"],
        task_manager=TaskManager(include_path=str(CONFIGS / "lmeval"), include_defaults=False),
        limit=6,
        gen_kwargs="steps=4",
        evaluation_tracker=tracker,
    )
    samples = found.pop("samples")["sudoku4"]
    tracker.save_results_aggregated(found, {"sudoku4": samples})
    tracker.save_results_samples("sudoku4", samples)
    [run] = read_runs([tmp_path])
    assert run.path.parent == next(tmp_path.rglob("samples_*.jsonl")).parent
    said = {answer.line["doc_id"]: answer for answer in run.answers}
    assert {answer.line["task"] for answer in run.answers} == {"sudoku4"} and len(said) == 6
    for row in samples:
        assert said[row["doc_id"]].verdict == bool(row["acc"])
        assert said[row["doc_id"]].line["text"] == row["resps"][0][0]
    assert {answer.verdict for answer in run.answers} == {True, False}


def test_documents_that_samples_chooses_keep_their_numbers(tmp_path, caplog):
    pytest.importorskip("lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from llada_plugins.lmeval_models import LLaDA

    model = LLaDA(record="trajectory", record_file=str(tmp_path / SUFFIX), device="cpu", steps=4)

    def documents(chosen: list[int]) -> tuple[dict, dict]:
        """The puzzles by number, of lm-eval's samples and of what was recorded."""
        (tmp_path / SUFFIX).unlink(missing_ok=True)
        found = simple_evaluate(
            model=model,
            tasks=["sudoku4"],
            task_manager=TaskManager(include_path=str(CONFIGS / "lmeval"), include_defaults=False),
            samples={"sudoku4": chosen},
        )
        [run] = read_runs([tmp_path])
        said = {answer.line["doc_id"]: answer.line["prompt"] for answer in run.answers}
        samples = found["samples"]["sudoku4"]
        return {row["doc_id"]: row["arguments"][0][0] for row in samples}, said

    theirs, ours = documents([2, 5])
    assert ours == theirs and set(ours) == {2, 5} and "rising" not in caplog.text
    theirs, disordered = documents([5, 2])
    assert disordered == ours == {2: theirs[5], 5: theirs[2]}
    assert "sudoku4: --samples gives documents out of order or twice" in caplog.text


def test_lm_eval_without_an_output_folder_is_told_before_any_weights():
    pytest.importorskip("lm_eval")
    from llada_plugins.lmeval_models import LLaDA

    with pytest.raises(ValueError, match="lm_eval --output_path"):
        LLaDA("no such checkpoint", record="trajectory")


def test_opencompass_writes_beside_its_predictions(tmp_path):
    pytest.importorskip("opencompass")
    from opencompass.openicl.icl_inferencer import GenInferencer
    from opencompass.openicl.icl_prompt_template import PromptTemplate
    from opencompass.openicl.icl_retriever import ZeroRetriever

    from llada_plugins.opencompass_models import LLaDA
    from llada_plugins.tasks.opencompass import Sudoku4Dataset

    model = LLaDA(record="trajectory", record_file=str(tmp_path / SUFFIX), device="cpu", **SAMPLER)
    model._record_beside_predictions = True  # as where a task gave the place
    data = Sudoku4Dataset(
        num=5, reader_cfg=dict(input_columns=["puzzle"], output_column="solution")
    )
    GenInferencer(model=model, max_out_len=16, batch_size=2).inference(
        ZeroRetriever(data),
        prompt_template=PromptTemplate("{puzzle}"),
        output_json_filepath=str(tmp_path),
        output_json_filename="sudoku4.json",
    )
    rows = json.loads((tmp_path / "sudoku4.json").read_text())
    [run] = read(tmp_path / f"sudoku4.{SUFFIX}")
    assert {str(each.line["doc_id"]): each.line["text"] for each in run.answers} == {
        number: row["prediction"] for number, row in rows.items()
    }
    assert len(rows) == 5


# ---- what a file of another kind, or a damaged one, is told


def told(path: Path) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        read_runs([path])
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)
    return str(refused.value)


def test_files_that_are_no_trajectories_are_told_in_one_line(tmp_path, file):
    path = tmp_path / SUFFIX
    assert "no such file or folder" in told(path)
    assert f"holds no file *{SUFFIX}" in told(tmp_path)
    path.write_bytes(b"")
    assert "is empty" in told(path)
    for foreign in (b"PK\x03\x04" + bytes(50), file.read_bytes()[:100], b"<html>"):
        path.write_bytes(foreign)
        assert "is no file of record=trajectory, or was cut" in told(path)


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda line: [], "not a line of record=trajectory"),
        (lambda line: {**line, "format": "another"}, "not a line of record=trajectory"),
        (lambda line: {**line, "version": 2}, "version 2 of the format.* reads 1"),
        (lambda line: {**line, "answer": "text"}, "answer is not what docs/view.md says"),
        (lambda line: {**line, "events": [1]}, "events are not what"),
        (lambda line: {**line, "events": [{**line["events"][0], "steps": 9}]}, "events are not"),
        (lambda line: {**line, "events": [{**line["events"][0], "flags": "?"}]}, "events are not"),
        (lambda line: {**line, "events": [{**line["events"][0], "start": None}]}, "events are not"),
    ],
)
def test_a_line_that_was_changed_is_told_by_file_and_line(tmp_path, file, edit, message):
    path = tmp_path / SUFFIX
    line = json.loads(next(gzip_lines.read(file)))
    gzip_lines.append(path, json.dumps(edit(line)))
    assert f"{path}:1: " in told(path)
    with pytest.raises(ValueError, match=message):
        read(path)


# ---- verdicts


def copied(file: Path, folder: Path, name: str = SUFFIX) -> list[dict]:
    """The first run alone, in another folder; its lines."""
    lines = [answer.line for answer in read(file)[0].answers]
    for line in lines:
        gzip_lines.append(folder / name, json.dumps(line))
    return lines


def test_lm_evals_samples_say_which_answers_are_right(tmp_path, file):
    rows = []
    for line in copied(file, tmp_path):
        number = line["doc_id"]
        for metric in (float(number % 2), 0.0):  # the second filter does not count
            response = "another" if number == 5 else line["text"]
            rows.append(
                {
                    "doc_id": number,
                    "arguments": {"gen_args_0": {"arg_0": "shots\n" + line["prompt"]}},
                    "resps": [[response]],
                    "metrics": ["acc"],
                    "acc": metric,
                }
            )
    samples = tmp_path / "samples_sudoku4_2026-01-01T00-00-00.000000.jsonl"
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{torn")
    [run] = read_runs([tmp_path])
    said = {answer.line["doc_id"]: answer.verdict for answer in run.answers}
    assert said == {0: False, 1: True, 2: False, 3: True, 4: False, 5: None}


def test_opencompass_results_say_which_answers_are_right(tmp_path, file):
    predictions = tmp_path / "predictions" / "model"
    lines = copied(file, predictions, f"sudoku4.{SUFFIX}")
    results = tmp_path / "results" / "model"
    results.mkdir(parents=True)
    said = {str(line["doc_id"]): {"prediction": line["text"]} for line in lines}
    (predictions / "sudoku4.json").write_text(json.dumps(said))
    details = [{"correct": number < 2} for number in range(6)]
    (results / "sudoku4.json").write_text(json.dumps({"accuracy": 33.3, "details": details}))
    [run] = read_runs([tmp_path])
    assert all(each.verdict == (each.line["doc_id"] < 2) for each in run.answers)


def test_the_table_of_evaluate_says_which_answers_are_right(tmp_path, file):
    lines = copied(file, tmp_path, f"table.{SUFFIX}")
    with MetricsFile(tmp_path / "table.csv", ("index", "correct", "response")) as metrics:
        metrics.expect(data="digest")
        metrics.begin(data_file="sudoku4.csv")
        for line in lines:
            metrics.append((line["doc_id"], int(line["doc_id"] > 3), line["text"]))
    [run] = read_runs([tmp_path])
    assert all(each.verdict == (each.line["doc_id"] > 3) for each in run.answers)


def test_without_a_verdict_beside_it_an_answer_has_none(file):
    assert {answer.verdict for run in read(file) for answer in run.answers} == {None}
