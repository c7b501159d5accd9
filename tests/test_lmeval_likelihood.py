"""Likelihoods through lm-eval: upstream's own tests of determinism and BOS handling,
pointed at our classes, and what a run records.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from pathlib import Path

import pytest

lm_eval = pytest.importorskip("lm_eval")

from lm_eval import evaluate, simple_evaluate  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.model import hash_args  # noqa: E402
from lm_eval.loggers import EvaluationTracker  # noqa: E402
from lm_eval.tasks import TaskManager, get_task_dict  # noqa: E402

from llada_plugins.likelihood.estimate import log_likelihood  # noqa: E402
from llada_plugins.lmeval_models import LLaDA, LLaDAALA  # noqa: E402
from llada_plugins.models.loading import load_model  # noqa: E402
from tests.commands import OWN_TASKS, OWN_TASKS_TWICE, python  # noqa: E402
from tests.tolerance import likelihood_error  # noqa: E402

pytestmark = pytest.mark.floats

ROOT = Path(__file__).parents[1]
BOS = "<|startoftext|>"
PAIRS = [
    ("the cat", " sat on it"),
    ("the cat", " ran"),
    ("the cat", " slept all day"),
    ("a dog", " barked"),
    ("", "alone"),
]
TASK = """task: toy_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
num_fewshot: 0
metric_list:
  - metric: acc
  - metric: acc_norm
"""


@pytest.fixture(scope="module")
def with_bos(tiny_checkpoint, tmp_path_factory) -> Path:
    """The same checkpoint with a tokenizer that begins every text with BOS."""
    folder = tmp_path_factory.mktemp("bos") / "model"
    shutil.copytree(tiny_checkpoint, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    number = next(token["id"] for token in tokenizer["added_tokens"] if token["content"] == BOS)
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": BOS, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {BOS: {"id": BOS, "ids": [number], "tokens": [BOS]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "add_bos_token": True}))
    return folder


@pytest.fixture(params=["adds BOS", "adds nothing"])
def model(request, tiny_checkpoint, with_bos) -> LLaDA:
    return LLaDA(
        str(with_bos if request.param == "adds BOS" else tiny_checkpoint), device="cpu", mc_num=8
    )


@pytest.fixture
def task_folder(tmp_path) -> Path:
    docs = [
        {
            "question": f"{word} is",
            "choices": ["one", "two", "a few", "many more"],
            "gold": number % 4,
        }
        for number, word in enumerate(["this", "that", "it", "all", "none"])
    ]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "toy.yaml").write_text(TASK.format(file=tmp_path / "docs.jsonl"))
    return tmp_path


def asked(pairs: list[tuple[str, str]]) -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]


def rounding_of(lm: LLaDA, pairs: list[tuple[str, str]] = PAIRS) -> float:
    """Bound of how much two values of a continuation differ; a token here is a byte."""
    return likelihood_error(lm.engine.model, max(len(continuation) for _, continuation in pairs))


def scored(lm: LLaDA, pairs: list[tuple[str, str]]) -> list[float]:
    return [value for value, _ in lm.loglikelihood(asked(pairs), disable_tqdm=True)]


# ---- after upstream's tests/models/test_bos_handling.py


def test_texts_get_bos_as_the_tokenizer_does_and_never_twice(model):
    bos, adds = model.tokenizer.bos_token_id, len(model.tok_encode("")) > 0
    plain = model.tok_encode("some text", add_special_tokens=False)
    assert bos not in plain and model.tok_encode("some text") == [bos] * adds + plain
    assert model.tok_encode(BOS + "some text") == [bos] + plain
    assert model.tok_encode("some text", add_special_tokens=True) == [bos] * adds + plain


@pytest.mark.parametrize(
    "context, continuation",
    [("one", " two"), ("one ", "two"), (BOS + "one", " two"), ("one\n\n", "two three")],
)
def test_bos_stays_with_the_context_and_the_pair_is_the_whole_text(model, context, continuation):
    first, second = model._encode_pair(context, continuation)
    assert first + second == model.tok_encode(context + continuation)
    bos = model.tokenizer.bos_token_id
    assert bos not in second
    assert first.count(bos) == (context.startswith(BOS) or len(model.tok_encode("")))


def test_an_empty_context_is_bos_once(model):
    bos = model.tokenizer.bos_token_id
    ids = model.tok_encode("alone", add_special_tokens=False)
    expected = log_likelihood(
        model.engine.model, [([bos], ids)], mc_num=8, special=model.engine.special
    )[0].value
    bound = likelihood_error(model.engine.model, len(ids))
    assert scored(model, [("", "alone")]) == pytest.approx([expected], abs=bound)
    # a continuation that brings its own
    assert scored(model, [("", BOS + "alone")]) == pytest.approx([expected], abs=bound)


def test_rolling_begins_with_the_prefix_token(model, monkeypatch):
    seen: list[tuple[list[int], list[int]]] = []
    whole = model.engine.log_likelihood
    monkeypatch.setattr(
        model.engine, "log_likelihood", lambda pairs: (seen.extend(pairs), whole(pairs))[1]
    )
    model.loglikelihood_rolling(
        [Instance("loglikelihood_rolling", {}, ("a text to roll over",), 0)], disable_tqdm=True
    )
    assert [list(part) for part in seen[0]] == [
        [model.prefix_token_id],
        model.tok_encode("a text to roll over", add_special_tokens=False),
    ]


def test_a_context_of_spaces_leaves_bos_with_the_context(model):
    bos, adds = model.tokenizer.bos_token_id, len(model.tok_encode("")) > 0
    assert model._encode_pair("\n ", "a") == (
        [bos] * adds,
        model.tok_encode("\n a", add_special_tokens=False),
    )


def test_a_context_of_spaces_is_scored_with_the_continuation(model):
    bos, adds = model.tokenizer.bos_token_id, len(model.tok_encode("")) > 0
    ids = model.tok_encode("\n a", add_special_tokens=False)
    expected = log_likelihood(
        model.engine.model, [([bos] * adds, ids)], mc_num=8, special=model.engine.special
    )[0].value
    bound = likelihood_error(model.engine.model, len(ids))
    assert scored(model, [("\n ", "a")]) == pytest.approx([expected], abs=bound)


def test_rolling_windows_are_no_longer_than_the_router_knows():
    lm = LLaDAALA(device="cpu", mc_num=2)
    text = "a text of more than two times sixty-four tokens, " * 4
    request = Instance("loglikelihood_rolling", {}, (text,), 0)
    [value] = lm.loglikelihood_rolling([request], disable_tqdm=True)
    assert math.isfinite(value) and len(lm.tok_encode(text)) > 2 * lm.engine.max_answer == 128


def test_an_answer_longer_than_the_router_knows_is_named_before_a_forward():
    with pytest.raises(
        ValueError, match="^request 1: an answer of 65 tokens exceeds the 64 that llada_ala knows"
    ):
        list(LLaDAALA(device="cpu").engine.log_likelihood([([17], [18] * 64), ([17], [18] * 65)]))


# ---- after upstream's tests/test_evaluator.py


def test_evaluating_by_name_and_by_object_agree_without_seeding_again(tiny_checkpoint, task_folder):
    arguments = {"pretrained": str(tiny_checkpoint), "mc_num": 8, "estimator": "published"}
    manager = TaskManager(include_path=str(task_folder / "tasks"), include_defaults=False)
    by_name = simple_evaluate(
        model="llada",
        model_args=arguments,
        tasks=["toy_choice"],
        task_manager=manager,
        device="cpu",
        bootstrap_iters=0,
    )
    by_object = evaluate(
        LLaDA(device="cpu", **arguments), get_task_dict(["toy_choice"], manager), bootstrap_iters=0
    )
    assert (
        by_name["results"]["toy_choice"]["acc,none"]
        == by_object["results"]["toy_choice"]["acc,none"]
    )
    answers, again = (
        [sample["resps"] for sample in found["samples"]["toy_choice"]]
        for found in (by_name, by_object)
    )
    assert answers == again and len(answers) == 5
    assert by_name["config"]["estimator"] == "published" and by_name["config"]["mc_num"] == 8


@pytest.mark.parametrize(
    "options",
    [
        *(dict(estimator=name) for name in ("count", "published", "bernoulli", "chain")),
        dict(mc_num="auto:4", mc_max=64),
    ],
    ids=str,
)
def test_values_depend_on_neither_order_nor_batches_nor_repetition(tiny_checkpoint, options):
    options = {"mc_num": 8, **options}
    lm = LLaDA(str(tiny_checkpoint), device="cpu", **options)
    first, bound = scored(lm, PAIRS), rounding_of(lm)
    assert scored(lm, PAIRS[::-1])[::-1] == pytest.approx(first, abs=bound)
    assert scored(lm, PAIRS) == first
    for size in (dict(batch_size=7), dict(batch_tokens=100)):
        assert scored(
            LLaDA(str(tiny_checkpoint), device="cpu", **options, **size), PAIRS
        ) == pytest.approx(first, abs=bound)
    # as two processes would: a question stays together
    halves = scored(lm, PAIRS[:3]) + scored(lm, PAIRS[3:])
    assert halves == pytest.approx(first, abs=bound)


@pytest.mark.slow
def test_two_processes_give_the_values_of_one(tiny_checkpoint, task_folder):
    def run(name: str, *launcher: str) -> dict[int, list]:
        folder = task_folder / name
        folder.mkdir()
        done = python(
            *launcher,
            *("--model", "llada", "--tasks", "toy_choice", "--device", "cpu", "--log_samples"),
            *("--include_path", str(task_folder / "tasks"), "--output_path", str(folder)),
            "--model_args",
            f"pretrained={tiny_checkpoint},mc_num=8,likelihood_log={folder}/log.jsonl",
            cwd=folder,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        rows = [
            json.loads(line)
            for line in next(folder.rglob("samples_toy_choice_*.jsonl")).read_text().splitlines()
        ]
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        texts = {
            f"{row['doc']['question']} {choice}" for row in rows for choice in row["doc"]["choices"]
        }
        assert {line["context"] + line["answer"] for line in lines} == texts
        assert all(
            arguments["arg_2"]["stderr"] > 0
            for row in rows
            for arguments in row["arguments"].values()
        )
        return {row["doc_id"]: [float(answer[0][0]) for answer in row["resps"]] for row in rows}

    one, two = run("one", *OWN_TASKS), run("two", *OWN_TASKS_TWICE)
    assert sorted(one) == sorted(two) == list(range(5))
    bound = likelihood_error(load_model(tiny_checkpoint, device="cpu"), len(" many more"))
    for doc in one:
        assert two[doc] == pytest.approx(one[doc], abs=bound)


# ---- what a run records


def logged_run(checkpoint: Path, folder: Path, **arguments) -> tuple[dict, list[dict]]:
    """What `lm_eval --log_samples` does: the results, and the lines of the sample file."""
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    found = simple_evaluate(
        model="llada",
        model_args={"pretrained": str(checkpoint), "mc_num": 8},
        tasks=["toy_choice"],
        device="cpu",
        task_manager=manager,
        bootstrap_iters=0,
        **arguments,
    )
    tracker = EvaluationTracker(output_path=str(folder / "out"))
    tracker.save_results_aggregated(found, found["samples"])
    tracker.save_results_samples("toy_choice", found["samples"]["toy_choice"])
    newest = max((folder / "out").rglob("samples_*.jsonl"))
    return found["results"]["toy_choice"], [
        json.loads(line) for line in newest.read_text().splitlines()
    ]


@pytest.mark.parametrize("repeats", [1, 2])
def test_the_sample_file_has_the_error_of_every_request_behind_its_texts(
    tiny_checkpoint, task_folder, repeats
):
    with (task_folder / "tasks" / "toy.yaml").open("a") as file:
        file.write(f"repeats: {repeats}\n")
    _, rows = logged_run(tiny_checkpoint, task_folder)
    pairs = [
        (row["doc"]["question"], f" {choice}") for row in rows for choice in row["doc"]["choices"]
    ]
    lm = LLaDA(str(tiny_checkpoint), device="cpu", mc_num=8)
    expected = dict(lm.engine.log_likelihood([lm.engine.encode_pair(*pair) for pair in pairs]))
    logged = [list(arguments.values()) for row in rows for arguments in row["arguments"].values()]
    assert [tuple(texts) for *texts, _ in logged] == pairs and len(pairs) == 20
    answers = [answer for row in rows for answer in row["resps"]]
    bound = rounding_of(lm, pairs)
    for number, (*_, error) in enumerate(logged):
        assert error == {
            "stderr": pytest.approx(expected[number].stderr, abs=bound),
            "num_forwards": expected[number].num_forwards,
        }
        assert answers[number] == repeats * [[answers[number][0][0], "False"]]
        assert float(answers[number][0][0]) == pytest.approx(expected[number].value, abs=bound)
    assert [answer for row in rows for answer in row["filtered_resps"]] == [
        answer[0] for answer in answers
    ]


def test_a_response_cache_keeps_its_keys_and_what_it_supplies_comes_without_error(
    tiny_checkpoint, task_folder, monkeypatch
):
    from sqlitedict import SqliteDict

    path = str(task_folder / "cache")
    logged_run(tiny_checkpoint, task_folder, use_cache=path, limit=2)
    fresh, expected = logged_run(tiny_checkpoint, task_folder)
    found, rows = logged_run(tiny_checkpoint, task_folder, use_cache=path)
    assert [[len(arguments) for arguments in row["arguments"].values()] for row in rows] == 2 * [
        4 * [2]
    ] + 3 * [4 * [3]]
    with SqliteDict(path + "_rank0.db") as cache:
        texts = [
            list(arguments.values())[:2] for row in rows for arguments in row["arguments"].values()
        ]
        # and the fingerprint
        assert {hash_args("loglikelihood", pair) for pair in texts} < set(cache)
        assert len(cache) == 20 + 1
    # every answer must come from the cache
    monkeypatch.setattr("llada_plugins.engine.Engine.log_likelihood", None)
    again, rows = logged_run(tiny_checkpoint, task_folder, use_cache=path)
    assert {len(arguments) for row in rows for arguments in row["arguments"].values()} == {2}
    assert found == again == fresh
    bound = likelihood_error(load_model(tiny_checkpoint, device="cpu"), len(" many more"))
    for row, other in zip(rows, expected):
        values, others = (
            [float(answer[0][0]) for answer in found["resps"]] for found in (row, other)
        )
        assert values == pytest.approx(others, abs=bound)
        assert row["prompt_hash"] == other["prompt_hash"]


def test_errors_of_windows_add_in_quadrature_and_an_unknown_one_is_null(tiny_checkpoint):
    texts = ("1234" * 6, "the cat sat on the mat")
    lm = LLaDA(str(tiny_checkpoint), device="cpu", max_length=9, mc_num=3)
    windows = []
    whole = lm.engine.log_likelihood
    lm.engine.log_likelihood = lambda pairs: (windows.extend(pairs), whole(pairs))[1]
    requests = [
        Instance("loglikelihood_rolling", {}, (text,), number) for number, text in enumerate(texts)
    ]
    values = lm.loglikelihood_rolling(requests, disable_tqdm=True)
    # as lm-eval caches them
    assert [request.args for request in requests] == [(text,) for text in texts]
    estimates = dict(whole(windows))
    assert len(windows) == 6
    for number, request in enumerate(requests):
        request.resps.append(values[number])
        parts = [estimates[index] for index in range(3 * number, 3 * number + 3)]
        bound = likelihood_error(lm.engine.model, len(texts[number]))
        error = {
            "stderr": pytest.approx(math.sqrt(sum(part.stderr**2 for part in parts)), abs=bound),
            "num_forwards": 9,
        }
        assert request.args == (texts[number], error) and request.arguments == (texts[number],)
        assert values[number] == pytest.approx(sum(part.value for part in parts), abs=bound)
    single = LLaDA(str(tiny_checkpoint), device="cpu", mc_num=1)
    request = Instance("loglikelihood", {}, ("the cat", " sat"), 0)
    request.resps += single.loglikelihood([request], disable_tqdm=True)
    assert request.args == ("the cat", " sat", {"stderr": None, "num_forwards": 1})


def test_the_log_has_a_line_with_the_error_of_every_request(tiny_checkpoint, tmp_path):
    path = tmp_path / "likelihoods.jsonl"
    lm = LLaDA(str(tiny_checkpoint), device="cpu", mc_num=8, likelihood_log=str(path))
    values = scored(lm, PAIRS)
    lines = {
        line["context"] + line["answer"]: line
        for line in map(json.loads, path.read_text().splitlines())
    }
    assert len(lines) == len(PAIRS)
    for (context, continuation), value in zip(PAIRS, values):
        line = lines[(context or BOS) + continuation]
        assert line["value"] == value
        assert line["stderr"] > 0
        assert 0 < line["num_forwards"] <= 8
        assert line["num_tokens"] == len(continuation)
        assert line["greedy"] is None
    scored(lm, PAIRS[:1])
    assert len(path.read_text().splitlines()) == len(PAIRS) + 1  # appended
    single = LLaDA(
        str(tiny_checkpoint), device="cpu", mc_num=1, likelihood_log=str(tmp_path / "one.jsonl")
    )
    scored(single, PAIRS[:1])
    assert json.loads((tmp_path / "one.jsonl").read_text())["stderr"] is None  # nan is no JSON
    with pytest.raises(ValueError, match="its folder does not exist"):
        LLaDA(
            str(tiny_checkpoint), device="cpu", likelihood_log=str(tmp_path / "none" / "log.jsonl")
        )
    with pytest.raises(ValueError, match="is a folder: give a file$"):
        LLaDA(str(tiny_checkpoint), device="cpu", likelihood_log=str(tmp_path))


def test_the_greedy_flag_is_false_until_asked(tiny_checkpoint):
    plain, asking = (
        LLaDA(str(tiny_checkpoint), device="cpu", mc_num=1, greedy_check=check)
        for check in (False, True)
    )
    engine = plain.engine
    context = engine.encode("the cat")
    scores = engine.model(
        engine.model.embedding.weight.new_tensor([context + [engine.special.mask]]).long()
    )[0, -1]
    scores[engine.special.mask] = -math.inf
    best = int(scores.argmax())
    pairs = [(("a", "b"), context, [best]), (("a", "c"), context, [(best + 1) % 256])]
    assert [flag for _, flag in plain._loglikelihood_tokens(pairs, disable_tqdm=True)] == [
        False,
        False,
    ]
    assert [flag for _, flag in asking._loglikelihood_tokens(pairs, disable_tqdm=True)] == [
        True,
        False,
    ]


WORD = """task: toy_word
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{question}}}}"
doc_to_target: "a"
metric_list:
  - metric: acc
"""


def run_of(lm: LLaDA, task_folder: Path, *names: str, **options: object) -> dict:
    texts = {"toy_word.yaml": WORD, "toy_word_perplexity.yaml": WORD + "  - metric: perplexity\n"}
    for name, text in texts.items():
        text = text.format(file=task_folder / "docs.jsonl")
        text = text.replace("task: toy_word", f"task: {name[:-5]}")
        (task_folder / "tasks" / name).write_text(text)
    manager = TaskManager(include_path=str(task_folder / "tasks"), include_defaults=False)
    return simple_evaluate(
        model=lm, tasks=list(names), task_manager=manager, bootstrap_iters=0, **options
    )


def test_an_accuracy_that_needs_greedy_check_is_no_zero_without_a_word(
    tiny_checkpoint, task_folder, caplog
):
    plain, told_not, asking = (
        LLaDA(str(tiny_checkpoint), device="cpu", mc_num=8, **options)
        for options in ({}, dict(greedy_check=False), dict(greedy_check=True))
    )
    with pytest.raises(ValueError, match=r"toy_word: its acc .* greedy_check=true .* 0 for every"):
        run_of(plain, task_folder, "toy_word")
    caplog.clear()
    run_of(plain, task_folder, "toy_word_perplexity")
    assert "toy_word_perplexity: its acc counts answers that greedy decoding" in caplog.text
    caplog.clear()
    run_of(plain, task_folder, "toy_word", predict_only=True)  # no metric is computed
    run_of(told_not, task_folder, "toy_word")  # as in LLaDA's published runs
    run_of(asking, task_folder, "toy_word")
    run_of(plain, task_folder, "toy_choice")  # its acc compares likelihoods
    assert "greedy" not in caplog.text


def write_answer_task(task_folder: Path) -> None:
    """toy_answer, whose answers are decoded."""
    answers = TASK.replace("toy_choice", "toy_answer").replace("multiple_choice", "generate_until")
    answers = answers.partition("metric_list")[0].replace(
        'doc_to_choice: "{{{{choices}}}}"\ndoc_to_target: gold', 'doc_to_target: "a"'
    )
    answers += "metric_list:\n  - metric: exact_match\n"
    (task_folder / "tasks" / "answer.yaml").write_text(
        answers.format(file=task_folder / "docs.jsonl")
    )


ROLLING = """task: toy_rolling
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list:
  - metric: word_perplexity
"""


@pytest.mark.parametrize("other", ["toy_answer", "toy_rolling"])
def test_a_zero_accuracy_is_refused_before_other_tasks_are_computed(
    tiny_checkpoint, task_folder, monkeypatch, other
):
    lm = LLaDA(str(tiny_checkpoint), device="cpu", mc_num=8)
    computed: list[object] = []
    monkeypatch.setattr(lm.engine, "generate", computed.append)
    monkeypatch.setattr(lm.engine, "log_likelihood", computed.append)
    write_answer_task(task_folder)
    (task_folder / "tasks" / "rolling.yaml").write_text(
        ROLLING.format(file=task_folder / "docs.jsonl")
    )
    with pytest.raises(ValueError, match="toy_word: its acc"):
        run_of(lm, task_folder, other, "toy_word", limit=1)
    assert not computed


def test_gen_kwargs_that_reach_no_likelihood_are_refused_or_told(
    tiny_checkpoint, task_folder, caplog
):
    lm = LLaDA(str(tiny_checkpoint), device="cpu", mc_num=8, cfg_scale=0.5)
    with pytest.raises(
        ValueError, match=r"--gen_kwargs \(cfg_scale\) reach answers alone, and toy"
    ):
        run_of(lm, task_folder, "toy_choice", gen_kwargs="cfg_scale=2")
    write_answer_task(task_folder)
    run_of(
        lm, task_folder, "toy_choice", "toy_answer", gen_kwargs="cfg_scale=2,gen_length=8", limit=1
    )
    assert "cfg_scale of --gen_kwargs reaches answers alone" in caplog.text
    assert "have cfg_scale=0.5, that of --model_args" in caplog.text
    assert "gen_length of --gen_kwargs" not in caplog.text


def test_a_context_that_is_too_long_is_cut_from_the_left_with_one_warning(tiny_checkpoint, caplog):
    lm = LLaDA(str(tiny_checkpoint), device="cpu", max_length=20, mc_num=8)
    with caplog.at_level(logging.WARNING):
        long, short, _ = scored(
            lm,
            [
                ("x" * 50 + "the cat sat on", " it"),
                ("xxxthe cat sat on", " it"),
                ("y" * 60, " more"),
            ],
        )
    assert long == pytest.approx(short, abs=likelihood_error(lm.engine.model, len(" it")))
    (said,) = [message for message in caplog.messages if "cut" in message]
    assert said.startswith(
        "2 of 3 requests do not fit and are cut from the left (overlong=truncate); the first, "
        "number 1: a context of 64 and"
    )
