"""lm-eval's stock entry points on our classes: same answers as the Engine, in any
order, batch size and number of processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

lm_eval = pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager, get_task_dict  # noqa: E402

from llada_plugins.engine.engine import Engine, Request  # noqa: E402
from llada_plugins.lmeval_models import LLaDA  # noqa: E402
from llada_plugins.tasks import sudoku  # noqa: E402
from tests.commands import OWN_TASKS, OWN_TASKS_TWICE, python  # noqa: E402
from tests.tolerance import likelihood_error  # noqa: E402

pytestmark = pytest.mark.floats

ROOT = Path(__file__).parents[1]
TASKS = ROOT / "configs" / "lmeval"
PUZZLES = [problem.puzzle for problem in sudoku.problems("test", 6)]
SMALL = {"gen_length": 16, "steps": 8}


def generation(prompts: list[str], **gen_kwargs: object) -> list[Instance]:
    return [
        Instance("generate_until", {}, (prompt, dict(gen_kwargs)), number)
        for number, prompt in enumerate(prompts)
    ]


def run_lm_eval(
    *arguments: str, cwd: Path, launcher: tuple[str, ...] = ("-m", "lm_eval"), **environment: str
) -> CompletedProcess[str]:
    return python(*launcher, *arguments, cwd=cwd, **environment)


def sudoku_run(
    folder: Path, *arguments: str, launcher: tuple[str, ...] = ("-m", "lm_eval"), limit: int = 8
) -> tuple[dict, dict[str, str]]:
    """Stock CLI on the first sudoku problems -> (results of the task, prompt -> answer)."""
    done = run_lm_eval(
        "--model",
        "llada",
        "--tasks",
        "sudoku4",
        "--include_path",
        str(TASKS),
        "--limit",
        str(limit),
        "--device",
        "cpu",
        "--output_path",
        str(folder),
        "--log_samples",
        *arguments,
        cwd=folder,
        launcher=launcher,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(next(folder.rglob("results_*.json")).read_text())
    rows = [
        json.loads(line)
        for line in next(folder.rglob("samples_sudoku4_*.jsonl")).read_text().splitlines()
    ]
    return results, {row["arguments"]["gen_args_0"]["arg_0"]: row["resps"][0][0] for row in rows}


@pytest.fixture(scope="module")
def model() -> LLaDA:
    return LLaDA(device="cpu", batch_size=4)


def test_generate_until_returns_exactly_the_engines_answers_in_request_order(model: LLaDA) -> None:
    engine = Engine("llada", device="cpu", batch_size=1)
    alone = [
        next(engine.generate([Request(puzzle, engine.sampler_for(SMALL), ())]))[1].text
        for puzzle in PUZZLES
    ]
    assert model.generate_until(generation(PUZZLES, until=[], **SMALL), disable_tqdm=True) == alone


def test_every_request_is_decoded_with_its_own_gen_kwargs(model: LLaDA) -> None:
    mixed = [
        Instance(
            "generate_until", {}, (puzzle, {"until": [], "gen_length": 16, "steps": steps}), number
        )
        for number, (puzzle, steps) in enumerate(zip(PUZZLES * 2, [16] * 6 + [1] * 6))
    ]
    answers = model.generate_until(mixed, disable_tqdm=True)
    separate = [model.generate_until([instance], disable_tqdm=True)[0] for instance in mixed]
    assert answers == separate and answers[:6] != answers[6:]


def test_gen_kwargs_are_not_changed_by_a_run(model: LLaDA) -> None:
    instances = generation(
        PUZZLES[:1], until=["4"], do_sample=False, temperature=1.0, max_gen_toks=16
    )
    before = json.dumps(instances[0].args)
    model.generate_until(instances, disable_tqdm=True)
    assert json.dumps(instances[0].args) == before


@pytest.mark.parametrize("until", [None, "2", ["2"], [], [""], ["", "2", "1"]], ids=str)
def test_until_may_be_a_string_a_list_empty_or_missing_and_the_earliest_stop_wins(
    model: LLaDA, until: object
) -> None:
    whole = model.generate_until(generation(PUZZLES[:1], **SMALL), disable_tqdm=True)[0]
    stops = [stop for stop in ([until] if isinstance(until, str) else until or []) if stop]
    cut = min([whole.index(stop) for stop in stops if stop in whole], default=len(whole))
    given = {} if until is None else {"until": until}
    assert (
        model.generate_until(generation(PUZZLES[:1], **SMALL, **given), disable_tqdm=True)[0]
        == whole[:cut]
    )


@pytest.mark.parametrize(
    ("gen_kwargs", "message"),
    [
        ({"block_lenght": 8}, "unknown gen_kwarg 'block_lenght' .did you mean 'block_length'"),
        ({"block_size": 8}, "block_size is an option of dllm's.*: did you mean 'block_length'"),
        ({"num_beams": 4}, "num_beams=4 has no meaning"),
        (
            {"gen_length": 16, "block_length": 8, "steps": 5},
            "steps .5. must be a multiple of the number of blocks .2 = gen_length 16 .*"
            "gen_length=16 from the request .task or --gen_kwargs.;.* steps=5 from",
        ),
        ({"steps": "many"}, "steps must be a whole number, got 'many'"),
        ({"gen_length": 5000}, "exceed the context of 4096 tokens"),
        ({"stop": ["a"]}, "unknown gen_kwarg 'stop' .did you mean 'until'"),
        ({"max_gen_toks": 0}, "gen_length must be at least 1, got 0"),
        ({"max_gen_toks": 12.5}, "max_gen_toks must be a whole number, got 12.5"),
        ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"do_sample": "maybe"}, "do_sample must be true or false, got 'maybe'"),
        ({"num_beams": "x"}, "num_beams must be a whole number, got 'x'"),
        ({"until": ["a", 5]}, "until must be a string or a list of strings, got .'a', 5."),
    ],
)
def test_bad_gen_kwargs_are_refused_before_any_request_is_decoded(
    model: LLaDA, gen_kwargs: dict, message: str
) -> None:
    good = generation(PUZZLES[:1], **SMALL)
    with pytest.raises(ValueError, match=message):
        model.generate_until(
            good + generation(PUZZLES[1:2], **{"until": [], **gen_kwargs}), disable_tqdm=True
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"treshold": 1}, "did you mean 'threshold'"),
        (
            {"model_path": "GSAI-ML/LLaDA-8B-Base", "cfg": 0.5, "is_check_greedy": False},
            "'model_path' .did you mean 'pretrained'.., 'cfg' .did you mean 'cfg_scale'.., "
            "'is_check_greedy' .did you mean 'greedy_check'",
        ),
        ({"pretrained": "/no/such/folder"}, "no such folder"),
        ({"remasking": "low"}, "remasking must be one of low_confidence, tps_prob"),
        ({"top_k": 5}, "no effect at temperature=0"),
    ],
)
def test_bad_model_args_are_refused_in_one_line(arguments: dict, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        LLaDA(device="cpu", **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [{"batch_size": 4}, "batch_size=4"], ids=["dict", "string"])
def test_model_args_that_lm_eval_passes_by_itself_are_refused_in_one_line(
    given: dict | str,
) -> None:
    with pytest.raises(
        ValueError, match="batch_size=4 stands in model_args, .* give it as --batch_size"
    ):
        simple_evaluate(model="llada", model_args=given, tasks=["sudoku4"], batch_size=1)


def test_the_answers_length_is_gen_length_then_the_tasks_then_256(model: LLaDA) -> None:
    def length(**gen_kwargs: object) -> int:
        return model._request("1", gen_kwargs).sampler.gen_length

    assert (
        length(gen_length=8, max_gen_toks=16),
        length(max_gen_toks=16),
        length(max_new_tokens=12),
        length(),
    ) == (8, 16, 12, 256)
    fixed = LLaDA(device="cpu", gen_length=32)
    assert fixed._request("1", {"max_gen_toks": 16}).sampler.gen_length == 32


@pytest.mark.parametrize("false", [False, 0, "false", "False"], ids=repr)
def test_do_sample_false_means_greedy_whatever_else_a_task_lists(model: LLaDA, false) -> None:
    sampler = model._request("1", {"do_sample": false, "temperature": 1.0, "top_p": 0.9}).sampler
    assert (sampler.temperature, sampler.top_p) == (0.0, None)
    assert (
        model._request(
            "1", {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
        ).sampler.temperature
        == 0.7
    )


@pytest.mark.parametrize(
    ("gen_kwargs", "model_args", "temperature"),
    [
        ({}, {}, 1.0),
        ({}, {"temperature": 0.5}, 0.5),
        ({"temperature": "0.2"}, {"temperature": 0.5}, 0.2),
        ({"temperature": 0}, {}, 0.0),
    ],
    ids=str,
)
def test_do_sample_true_without_a_temperature_samples(
    gen_kwargs: dict, model_args: dict, temperature: float, caplog
) -> None:
    """At the model's temperature, else at 1, as in OpenCompass and in transformers."""
    model = LLaDA(device="cpu", **model_args)
    sampler = model._request("1", {"do_sample": "true", **gen_kwargs}).sampler
    assert sampler.temperature == temperature
    if temperature:  # lm-eval's line is for those who ask for both do_sample and 0
        assert "For non-greedy sampling" not in caplog.text


def test_log_likelihoods_do_not_depend_on_batch_size_or_order_and_are_the_engines() -> None:
    pairs = [
        (puzzle, problem.solution) for puzzle, problem in zip(PUZZLES, sudoku.problems("test", 6))
    ] + [("", "1234"), ("12", "3")]
    instances = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    small, large = LLaDA(device="cpu", mc_num=16), LLaDA(device="cpu", mc_num=16, batch_size=64)
    first = small.loglikelihood(instances, disable_tqdm=True)
    bound = likelihood_error(small.engine.model, 16)  # tokens of a solution
    assert [value for value, _ in first] == pytest.approx(
        [value for value, _ in large.loglikelihood(instances[::-1], disable_tqdm=True)[::-1]],
        abs=bound,
    )
    tokens = [small._encode_pair(*pair) for pair in pairs[:6]]
    direct = dict(small.engine.log_likelihood(tokens))
    assert [value for value, _ in first[:6]] == pytest.approx(
        [direct[number].value for number in range(6)], abs=bound
    )


def test_a_solution_is_likelier_than_the_same_digits_in_another_order(model: LLaDA) -> None:
    problem = sudoku.problems("test", 1)[0]
    pairs = [(problem.puzzle, problem.solution), (problem.puzzle, problem.solution[::-1])]
    right, wrong = model.loglikelihood(
        [Instance("loglikelihood", {}, pair, 0) for pair in pairs], disable_tqdm=True
    )
    assert right[0] > wrong[0]


def test_rolling_log_likelihood_sums_disjoint_windows(model: LLaDA) -> None:
    text = "1234" * 6
    short = LLaDA(device="cpu", max_length=9, mc_num=512)
    total = short.loglikelihood_rolling(
        [Instance("loglikelihood_rolling", {}, (text,), 0)], disable_tqdm=True
    )[0]
    ids = short.tok_encode(text)
    windows = [([short.prefix_token_id], ids[:8]), (ids[7:8], ids[8:16]), (ids[15:16], ids[16:])]
    expected = sum(estimate.value for _, estimate in short.engine.log_likelihood(windows))
    assert total == pytest.approx(expected, abs=likelihood_error(short.engine.model, len(ids)))


def test_a_chat_prompt_has_one_header_and_a_prefill_ends_with_its_text(model: LLaDA) -> None:
    header = "<|start_header_id|>assistant<|end_header_id|>"
    asked = model.apply_chat_template([{"role": "user", "content": "2+2?"}])
    assert asked.count(header) == 1 and asked.endswith(header + "\n\n")
    prefilled = model.apply_chat_template(
        [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "It is"}],
        add_generation_prompt=False,
    )
    assert prefilled.count(header) == 1 and prefilled.endswith("It is")


def test_a_response_cache_serves_only_the_model_that_filled_it(tmp_path: Path) -> None:
    from lm_eval.api.model import CachingLM

    path = str(tmp_path / "cache.db")
    CachingLM(LLaDA(device="cpu"), path).generate_until(generation(PUZZLES[:2], **SMALL))
    # the batch size is not part of a model's identity
    again = CachingLM(LLaDA(device="cpu", batch_size=2), path)
    again.lm.engine.generate = None  # every answer must come from the cache
    assert len(again.generate_until(generation(PUZZLES[:2], **SMALL))) == 2
    message = "written by another model or version, or with other options"
    with pytest.raises(ValueError, match=message) as refused:
        CachingLM(LLaDA(device="cpu", confidence_source="random"), path)
    assert ": sampler.confidence_source was None, is 'random': give another file" in str(
        refused.value
    )


def test_finished_answers_are_cached_when_a_later_one_fails(tmp_path: Path) -> None:
    from lm_eval.api.model import CachingLM

    path = str(tmp_path / "cache.db")
    model = LLaDA(device="cpu")
    caching, whole = CachingLM(model, path), model.engine.generate

    def breaks_after_two(requests: list[Request]):
        for count, item in enumerate(whole(requests)):
            if count == 2:
                raise KeyboardInterrupt
            yield item

    model.engine.generate = breaks_after_two
    with pytest.raises(KeyboardInterrupt):
        caching.generate_until(generation(PUZZLES, **SMALL))
    assert len(caching.dbdict) == 1 + 2 * 2  # fingerprint, and two answers with their costs


def test_simple_evaluate_finds_the_model_by_name_and_reports_its_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    results = simple_evaluate(
        model="llada",
        model_args={"steps": 16, "batch_size": 8},
        tasks=["sudoku4"],
        limit=4,
        device="cpu",
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
        bootstrap_iters=0,
    )
    assert results["results"]["sudoku4"]["acc,none"] >= 0.5
    assert results["config"]["sampler"]["steps"] == 16
    assert results["config"]["confidence_source"] == "tps_prob"
    manifest = results["config"]["manifest"]
    assert manifest["options"]["steps"]["value"] == 16
    assert manifest["results"]["sudoku4"]["acc,none"] == results["results"]["sudoku4"]["acc,none"]


@pytest.mark.slow
def test_the_stock_command_evaluates_the_shipped_model_without_arguments(tmp_path: Path) -> None:
    results, answers = sudoku_run(tmp_path)
    problems = sudoku.problems("test", 8)
    accuracy = (
        sum(sudoku.is_valid(problem.puzzle, answers[problem.puzzle]) for problem in problems) / 8
    )
    assert results["results"]["sudoku4"]["acc,none"] == accuracy >= 0.75


@pytest.mark.slow
def test_a_misspelt_model_arg_ends_the_stock_command_with_a_non_zero_status(tmp_path: Path) -> None:
    done = run_lm_eval(
        "--model",
        "llada",
        "--model_args",
        "stepz=4",
        "--tasks",
        "sudoku4",
        "--include_path",
        str(TASKS),
        cwd=tmp_path,
    )
    assert done.returncode != 0 and "did you mean 'steps'" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ("-m", "llada_plugins.cli"),
        ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "lm_eval"),
    ],
    ids=["llada-eval", "accelerate"],
)
def test_other_launchers_give_the_same_answers(tmp_path: Path, launcher: tuple[str, ...]) -> None:
    (tmp_path / "stock").mkdir(), (tmp_path / "other").mkdir()
    assert sudoku_run(tmp_path / "stock")[1] == sudoku_run(tmp_path / "other", launcher=launcher)[1]


@pytest.mark.slow
def test_two_processes_give_the_same_answers_as_one(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    sampling = ("--gen_kwargs", "steps=8,temperature=0.7,do_sample=true")
    one = sudoku_run(tmp_path / "one", *sampling, limit=9, launcher=OWN_TASKS)
    two = sudoku_run(tmp_path / "two", *sampling, limit=9, launcher=OWN_TASKS_TWICE)
    assert one[1] == two[1]
    assert one[0]["results"]["sudoku4"]["acc,none"] == two[0]["results"]["sudoku4"]["acc,none"]


def test_questions_of_a_csv_are_asked_and_graded_by_the_packages_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("math_verify")
    (tmp_path / "math_test_data.csv").write_text(
        'question,answer\n"Half of 1, ""as a fraction""?",\\boxed{\\frac12}\n007?,NA\n'
    )
    monkeypatch.setenv("LLADA_PLUGINS_DATA", str(tmp_path))
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    task = get_task_dict(["math_csv_local"], manager)["math_csv_local"]
    docs = list(task.test_docs())
    assert [task.doc_to_text(doc).split("\n")[0] for doc in docs] == [
        'Half of 1, "as a fraction"?',
        "007?",
    ]
    assert [doc["answer"] for doc in docs] == ["\\boxed{\\frac12}", "NA"]
    assert [
        task.process_results(docs[0], [text])["math_verify"]
        for text in ("\\boxed{0.5}", "\\boxed{5}", "")
    ] == [1.0, 0.0, 0.0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "metric", "limit", "extra"),
    [
        ("gsm8k_local", "exact_match,strict-match", 20, ()),
        (
            "gsm8k_local",
            "exact_match,strict-match",
            4,
            ("--apply_chat_template", "--fewshot_as_multiturn", "true"),
        ),
        ("math500_local", "math_verify,none", 5, ("--apply_chat_template",)),
        (
            "math_csv_local",
            "math_verify,none",
            3,
            ("--metadata", '{"data_file": "math500/r3_math_test_data.csv"}'),
        ),
        ("humaneval_local", "pass@1,none", 164, ("--confirm_run_unsafe_code",)),
        ("mbpp_local", "pass@1,none", 5, ("--confirm_run_unsafe_code",)),
    ],
)
def test_real_data_runs_end_to_end_and_the_tiny_model_scores_zero(
    tmp_path: Path,
    public: Callable[[str], Path],
    task: str,
    metric: str,
    limit: int,
    extra: tuple[str, ...],
) -> None:
    data = public("gsm8k").parent  # which holds the other tasks' files too
    done = run_lm_eval(
        "--model",
        "llada",
        "--model_args",
        "early_stop=True",
        "--tasks",
        task,
        "--include_path",
        str(TASKS),
        "--limit",
        str(limit),
        "--gen_kwargs",
        "gen_length=32,steps=4,block_length=32",
        "--output_path",
        str(tmp_path),
        "--log_samples",
        "--device",
        "cpu",
        *extra,
        cwd=tmp_path,
        launcher=OWN_TASKS,
        LLADA_PLUGINS_DATA=str(data),
        HF_ALLOW_CODE_EVAL="1",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(next(tmp_path.rglob("results_*.json")).read_text())
    rows = [
        json.loads(line)
        for line in next(tmp_path.rglob(f"samples_{task}_*.jsonl")).read_text().splitlines()
    ]
    assert len({row["doc_id"] for row in rows}) == limit
    assert results["results"][task][metric] == 0.0
    prompt = rows[0]["arguments"]["gen_args_0"]["arg_0"]
    assert (
        prompt.count("<|start_header_id|>assistant<|end_header_id|>") >= 1
        if "--apply_chat_template" in extra
        else "<|" not in prompt
    )
    stops = rows[0]["arguments"]["gen_args_0"]["arg_1"]["until"]
    assert not any(stop in row["resps"][0][0] for row in rows for stop in stops)
