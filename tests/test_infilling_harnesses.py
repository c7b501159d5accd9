"""Infilling tasks in both harnesses: what they ask, what they grade, and that they agree."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("opencompass")

from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from mmengine.config import Config
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

from llada_plugins import lmeval_models
from llada_plugins.engine.engine import Engine
from llada_plugins.opencompass_inferencers import (
    InfillGenInferencer,
    LLInferencer,
    PPLInferencer,
)
from llada_plugins.opencompass_models import LLaDA
from llada_plugins.tasks import spans, sudoku
from llada_plugins.tasks.opencompass import (
    HumanEvalInfillingDataset,
    HumanEvalInfillingEvaluator,
    Sudoku4InfillingDataset,
    Sudoku4InfillingEvaluator,
)
from tests.family_checkpoints import with_tokenizer

CONFIGS = Path(__file__).parents[1] / "configs"
SINGLE = "humaneval_infilling/HumanEval-SingleLineInfilling.jsonl.gz"
PROBLEM = {
    "task_id": "SingleLineInfilling/HumanEval/0/L0",
    "entry_point": "double",
    "prompt": "def double(x):\n",
    "suffix": "    return y\n",
    "canonical_solution": "    y = 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(3) == 6\n",
}


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """A folder with a file of the released form, two problems long."""
    monkeypatch.setenv("LLADA_PLUGINS_DATA", str(tmp_path))
    write(tmp_path / SINGLE, [PROBLEM, {**PROBLEM, "suffix": "    return 2 * x\n"}])
    return tmp_path


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager(include_path=str(CONFIGS / "lmeval"), include_defaults=False)


def lm_eval_instances(manager: TaskManager, name: str, num: int) -> list[Instance]:
    """What lm-eval asks of the first documents of a task."""
    task = manager.load([name])["tasks"][name]
    task.build_all_requests(limit=num)
    return task.instances


def of_lm_eval(instances: list[Instance], **options) -> list[str]:
    model = lmeval_models.LLaDA(device="cpu", batch_size=4, **options)
    return model.generate_until(instances, disable_tqdm=True)


def test_both_harnesses_fill_in_what_the_engine_does(manager, tmp_path):
    num = 4
    instances = lm_eval_instances(manager, "sudoku4_infilling", num)
    data = Sudoku4InfillingDataset(
        num=num, reader_cfg=dict(input_columns=["text"], output_column="solution")
    )
    made = InfillGenInferencer(
        model=LLaDA(device="cpu"), max_out_len=4, batch_size=3, output_json_filepath=str(tmp_path)
    )
    predictions = made.inference(
        ZeroRetriever(data),
        prompt_template=PromptTemplate("{text}"),
        output_json_filepath=str(tmp_path),
        output_json_filename="predictions.json",
    )
    engine = Engine(device="cpu")
    direct = [engine.infill(row["text"]).completion.text for row in spans.sudoku_rows(num)]
    assert of_lm_eval(instances) == predictions == direct
    scores = Sudoku4InfillingEvaluator().score(
        predictions, data.test["solution"], data.reader.dataset["test"]
    )
    right = [
        sudoku.is_valid(row["puzzle"], row["solution"][:4] + each + row["solution"][8:])
        for row, each in zip(spans.sudoku_rows(num), direct)
    ]
    assert scores["accuracy"] == 100 * sum(right) / num > 0


@pytest.mark.parametrize("family", ["sdar", pytest.param("llada2", marks=pytest.mark.slow)])
def test_both_harnesses_fill_in_what_a_block_causal_checkpoint_sees(family, tmp_path):
    options = dict(pretrained=str(with_tokenizer(family, tmp_path / family)), threshold=0.1)
    text = "some words<|infill|>, others<|infill:3|>, and many more of them after the spans"
    engine = Engine(unseen_suffix=True, gen_length=6, **options)
    direct = engine.infill(text).completion.text
    given = {"infill": True, "until": [], "max_gen_toks": 6}
    instance = Instance("generate_until", {}, (text, given), 0)
    assert of_lm_eval([instance], unseen_suffix=True, **options) == [direct]
    path = options.pop("pretrained")
    model = LLaDA(path, unseen_suffix=True, **options)
    with model.infilling():
        assert model.generate([text], 6) == [direct]
    with pytest.raises(ValueError, match="set unseen_suffix=true to fill it in all the same"):
        of_lm_eval([instance], pretrained=path, **options)
    with pytest.raises(ValueError, match="do not see the text after their block: name one length"):
        engine.infill("a<|infill:2,3|>b")


def test_both_harnesses_ask_the_same_of_humaneval_infilling(manager, data):
    instances = lm_eval_instances(manager, "humaneval_infilling_single_line", 2)
    asked = [instance.args[0] for instance in instances]
    rows = HumanEvalInfillingDataset(
        data_file=SINGLE,
        reader_cfg=dict(input_columns=["text"], output_column="canonical_solution"),
    )
    assert (
        asked
        == rows.test["text"]
        == [
            "def double(x):\n<|infill|>    return y\n",
            "def double(x):\n<|infill|>    return 2 * x\n",
        ]
    )
    assert instances[0].args[1]["infill"] is True and instances[0].args[1]["max_gen_toks"] == 16


# as the repository has them; the names in its own data.py are of no file
RELEASED = {
    "single_line": "SingleLineInfilling",
    "multi_line": "MultiLineInfilling",
    "random_span": "RandomSpanInfilling",
    "random_span_light": "RandomSpanInfillingLight",
}


def test_both_harnesses_have_every_released_benchmark_with_one_length(manager, data):
    config = Config.fromfile(str(CONFIGS / "opencompass/datasets/humaneval_infilling.py"))
    sets = {each["abbr"]: each for each in config["humaneval_infilling_datasets"]}
    assert list(sets) == [f"humaneval_infilling_{name}" for name in RELEASED]
    for name, file in RELEASED.items():
        write(
            data / f"humaneval_infilling/HumanEval-{file}.jsonl.gz", [{**PROBLEM, "task_id": file}]
        )
        [instance] = lm_eval_instances(manager, f"humaneval_infilling_{name}", 2)
        assert instance.doc["task_id"] == file
        found = sets[f"humaneval_infilling_{name}"]
        assert found["data_file"] == f"humaneval_infilling/HumanEval-{file}.jsonl.gz"
        length = found["infer_cfg"]["inferencer"]["max_out_len"]
        assert instance.args[1]["max_gen_toks"] == length


def test_opencompass_tables_name_the_mode_of_every_inferencer_of_ours(tmp_path):
    """The stock table takes the mode from the name of the class, and warns where it knows none."""
    from mmengine import ConfigDict
    from opencompass.summarizers import DefaultSummarizer

    modes = {InfillGenInferencer: "gen", PPLInferencer: "ppl", LLInferencer: "ll"}
    datasets = [
        dict(abbr=each.__name__, infer_cfg=dict(inferencer=dict(type=each))) for each in modes
    ]
    asked = ConfigDict(models=[dict(abbr="tiny")], datasets=datasets, work_dir=str(tmp_path))
    *_, found = DefaultSummarizer(asked)._pick_up_results()
    assert found == {each.__name__: mode for each, mode in modes.items()}


def test_a_mark_is_ordinary_text_unless_infilling_is_asked_for():
    text = spans.sudoku_rows(1)[0]["text"]
    arguments = {"until": [], "max_gen_toks": 4}
    instances = [
        Instance("generate_until", {}, (text, {**arguments, **own}), 0)
        for own in ({}, {"infill": True}, {"infill": "false"})
    ]
    plain, filled, refused = of_lm_eval(instances)
    engine = Engine(device="cpu")
    assert filled == engine.infill(text).completion.text
    assert plain == refused


@pytest.mark.parametrize(
    "text, own, told",
    [
        ("1<|infill|>2", {"until": ["\n"]}, "stop strings"),
        ("12", {}, "nothing is to be filled in"),
        ("1<|infill:0|>2", {}, "at least 1 token"),
    ],
)
def test_what_a_task_cannot_ask_is_refused(text, own, told):
    given = {"infill": True, "until": [], "max_gen_toks": 4, **own}
    with pytest.raises(ValueError, match=told):
        of_lm_eval([Instance("generate_until", {}, (text, given), 0)])


def test_chats_are_not_filled_in(tiny_checkpoint):
    model = LLaDA(str(tiny_checkpoint), chat=True, device="cpu")
    with model.infilling(), pytest.raises(ValueError, match="leave out chat and meta_template"):
        model.generate(["1<|infill|>2"], 4)


# ---- grading


def test_programs_are_graded_with_their_suffix():
    assert spans.passes(PROBLEM, PROBLEM["canonical_solution"])
    assert not spans.passes(PROBLEM, "    y = 3 * x\n")
    assert not spans.passes(PROBLEM, "    y = 2 * x\n    return 7\n")
    assert not spans.passes(PROBLEM, "    y = (\n")
    # as published, a line ends between suffix and tests
    assert spans.passes({**PROBLEM, "suffix": "return 2 * x"}, "    ")


def test_opencompass_executes_code_where_it_is_permitted_alone(data, monkeypatch):
    rows = HumanEvalInfillingDataset(
        data_file=SINGLE,
        reader_cfg=dict(input_columns=["text"], output_column="canonical_solution"),
    )
    middles = ["    y = 2 * x\n", "    y = (\n"]
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    with pytest.raises(ValueError, match="set HF_ALLOW_CODE_EVAL=1 to permit it"):
        HumanEvalInfillingEvaluator().score(middles, middles, rows.reader.dataset["test"])
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    found = HumanEvalInfillingEvaluator().score(middles, middles, rows.reader.dataset["test"])
    assert found["pass@1"] == 50.0


@pytest.mark.parametrize(
    "rows, told",
    [
        ([{**PROBLEM, "suffix": "# <|infill:3|>"}], "gz:1: a text to be filled in holds"),
        ([{"task_id": "a"}], "gz:1: no text 'prompt'; needed are"),
        ([PROBLEM, {**PROBLEM, "test": 3}], "gz:2: no text 'test'"),
        ([], "holds no problems"),
        ([PROBLEM, [1]], "gz:2: no text 'task_id'; needed are"),
        ([PROBLEM, {**PROBLEM, "prompt": "\ud800"}], "gz:2: not UTF-8 text: lone surrogate"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, rows, told):
    write(tmp_path / SINGLE, rows)
    with pytest.raises(ValueError, match=told):
        spans.read_humaneval(tmp_path / SINGLE)


def test_a_torn_file_and_a_line_that_is_no_json_are_refused(tmp_path):
    write(tmp_path / SINGLE, [PROBLEM] * 9)
    torn = tmp_path / "torn.jsonl.gz"
    torn.write_bytes((tmp_path / SINGLE).read_bytes()[:60])
    with pytest.raises(ValueError, match=r"torn\.jsonl\.gz: no whole gzip file"):
        spans.read_humaneval(torn)
    plain = tmp_path / "plain.jsonl"
    plain.write_text(f"{json.dumps(PROBLEM)}\n\n{{'task_id': 1}}\n")
    with pytest.raises(ValueError, match=r"plain\.jsonl:3: not JSON"):
        spans.read_humaneval(plain)


@pytest.mark.parametrize(
    "given, lengths", [(None, ()), (8, (8,)), ("8,16", (8, 16)), ([4, 8], (4, 8)), ("", ())]
)
def test_lengths_are_read_as_configs_have_them(given, lengths):
    assert spans.lengths_of(given) == lengths


@pytest.mark.parametrize("given", ["0", [-1], "a", [], {"a": 1}])
def test_other_lengths_are_refused(given):
    with pytest.raises(ValueError, match="lengths must be numbers of tokens"):
        spans.lengths_of(given)
