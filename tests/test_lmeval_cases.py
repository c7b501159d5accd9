"""lm-eval runs that users of other wrappers reported, each with the value that is right."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

lm_eval = pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.model import CachingLM  # noqa: E402
from lm_eval.loggers import EvaluationTracker  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from llada_plugins.likelihood.estimate import log_likelihood  # noqa: E402
from llada_plugins.lmeval_models import LLaDA  # noqa: E402
from llada_plugins.models.loading import save_model  # noqa: E402
from tests.tolerance import likelihood_error  # noqa: E402

pytestmark = pytest.mark.floats


def generation(prompts: list[str], **gen_kwargs: object) -> list[Instance]:
    return [
        Instance("generate_until", {}, (prompt, dict(gen_kwargs)), number)
        for number, prompt in enumerate(prompts)
    ]


def evaluated(
    lm: LLaDA | str, folder: Path, task: str, docs: list[dict], **options: object
) -> dict:
    """lm-eval's results of a task, given as YAML without its name and data."""
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (folder / "task.yaml").write_text(
        "task: reported\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {folder / 'docs.jsonl'}\ntest_split: test\nnum_fewshot: 0\n{task}"
    )
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return simple_evaluate(
        model=lm, tasks=["reported"], task_manager=manager, bootstrap_iters=0, **options
    )


# ---- the length that options are judged against


def test_steps_and_blocks_are_judged_against_the_tasks_length_not_the_default(tiny_checkpoint):
    # 128 tokens would be 8 blocks
    lm = LLaDA(str(tiny_checkpoint), device="cpu", steps=12, block_length=16)
    sampler = lm._request("1", {"until": [], "max_gen_toks": 48}).sampler
    assert (sampler.gen_length, sampler.num_blocks, sampler.steps_per_block) == (48, 3, 4)
    given = LLaDA(str(tiny_checkpoint), device="cpu", steps=12, block_length=16, gen_length=48)
    request = generation(["12"], until=[], max_gen_toks=48)
    assert lm.generate_until(request, True) == given.generate_until(request, True)


def test_the_reported_options_run_on_a_task_of_256_tokens():
    lm = LLaDA(device="cpu", steps=256, block_length=32)
    sampler = lm._request("1", {"do_sample": False, "max_gen_toks": 256}).sampler
    assert (sampler.num_blocks, sampler.steps_per_block) == (8, 32)


@pytest.mark.parametrize(
    ("model_args", "gen_kwargs", "told"),
    [
        (
            {"steps": 64, "block_length": 8},
            {"max_gen_toks": 24},
            r"steps \(64\) must be a multiple of the number of blocks \(3 = gen_length 24 / .* "
            r"\[steps=64 from the model's options \(model_args\); .*; gen_length=24 from the "
            r"task's answer length\]",
        ),
        (
            {"gen_length": 24, "block_length": 8},
            {"steps": 64},
            r"\[steps=64 from the request \(task or --gen_kwargs\); .*gen_length=24 from the "
            r"model's options",
        ),
        (
            {"steps": 7, "block_length": 16},
            {},
            r"steps \(7\) must be a multiple .*steps=7 from the model's .*; gen_length=256 from "
            r"the task's answer length",
        ),
        (
            {"threshold": 0.9},
            {"top_p": 0.5},
            r"no effect at temperature=0.*top_p=0.5 from the request .*temperature=0.0 from the "
            r"defaults",
        ),
    ],
    ids=str,
)
def test_a_refusal_names_the_users_numbers_and_where_each_came_from(
    tiny_checkpoint, model_args, gen_kwargs, told
):
    lm = LLaDA(str(tiny_checkpoint), device="cpu", **model_args)
    with pytest.raises(ValueError, match=told) as caught:
        lm._request("1", gen_kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model_args", "told"),
    [
        (
            {"gen_length": 16, "block_length": 8, "steps": 5},
            r"steps \(5\) must be a multiple of the number of blocks \(2",
        ),
        (
            {"gen_length": 16, "block_length": 8, "sampling_method": "fixed_length"},
            r"fixed_length' decodes one block: .*gen_length \(16\), got 8",
        ),
        ({"steps": 8, "max_forwards": 4}, "max_forwards has no effect without threshold"),
    ],
    ids=str,
)
def test_what_no_answer_length_can_mend_is_refused_when_the_model_is_built(
    tiny_checkpoint, model_args, told
):
    with pytest.raises(ValueError, match=told):
        LLaDA(str(tiny_checkpoint), device="cpu", **model_args)


def test_tasks_of_several_lengths_are_decoded_in_whole_blocks_and_cut_with_one_warning(
    tiny_checkpoint, caplog
):
    lm = LLaDA(str(tiny_checkpoint), device="cpu", block_length=32, early_stop=False)
    requests = [
        instance
        for length in (30, 64, 90)
        for instance in generation(["12", "3"], max_gen_toks=length)
    ]
    with caplog.at_level(logging.WARNING):
        answers = lm.generate_until(requests, True)
    assert [record for record in caplog.messages if "whole blocks" in record] == [
        "answers that blocks of 32 tokens do not divide are decoded in whole blocks and cut: "
        "30 tokens cost what 32 do"
    ]
    whole = lm.generate_until(
        [
            instance
            for length in (32, 64, 96)
            for instance in generation(["12", "3"], max_gen_toks=length)
        ],
        True,
    )
    lengths = [lm._request(*instance.args).sampler.gen_length for instance in requests]
    assert lengths == [30, 30, 64, 64, 90, 90]
    assert all(full.startswith(cut) for cut, full in zip(answers, whole))
    assert answers[:2] != whole[:2]


# ---- choices that share a token with their context


@pytest.fixture(scope="module")
def merging(tiny_checkpoint, make_model, tmp_path_factory) -> Path:
    """A checkpoint whose tokenizer has tokens for 'number' and '(x'."""
    folder = tmp_path_factory.mktemp("merging") / "model"
    shutil.copytree(tiny_checkpoint, folder)
    path = folder / "tokenizer.json"
    raw, merged = json.loads(path.read_text()), ["nu", "num", "numb", "numbe", "number", "(x"]
    first = 1 + max(token["id"] for token in raw["added_tokens"])
    # else they are numbered anew
    raw["model"]["vocab"] |= {token["content"]: token["id"] for token in raw["added_tokens"]}
    raw["model"]["vocab"] |= {token: first + number for number, token in enumerate(merged)}
    raw["model"]["merges"] = [[token[:-1], token[-1]] for token in merged]
    path.write_text(json.dumps(raw))
    config = json.loads((folder / "config.json").read_text())
    save_model(
        make_model(
            vocab_size=first + len(merged),
            max_sequence_length=128,
            mask_token_id=config["mask_token_id"],
            eos_token_id=config["eos_token_id"],
        ),
        folder,
    )
    return folder


def test_steps_beyond_the_answers_tokens_are_left_out_and_told_once(tiny_checkpoint, caplog):
    lm = LLaDA(str(tiny_checkpoint), device="cpu", steps=32, block_length=8)
    one_each = LLaDA(str(tiny_checkpoint), device="cpu", steps=16, block_length=8)
    requests = generation(["12", "34"], until=[], max_gen_toks=16)
    assert lm.generate_until(requests, True) == one_each.generate_until(requests, True)
    assert [record for record in caplog.messages if "steps" in record] == [
        "steps=32 exceeds gen_length (16): as each step unmasks at least one token, 16 of them "
        "would change nothing and are left out"
    ]


@pytest.mark.parametrize(("context", "choice"), [("There is a num", "ber"), ("Let f(", "x)")])
def test_a_choice_that_shares_a_token_with_its_context_is_scored_as_its_own_text(
    merging, context, choice
):
    lm = LLaDA(str(merging), device="cpu", mc_num=8)
    ids = [lm.tokenizer.encode(text, add_special_tokens=False) for text in (context, choice)]
    assert sum(ids, []) != lm.tokenizer.encode(context + choice)  # a token spans the join
    expected = log_likelihood(lm.engine.model, [tuple(ids)], mc_num=8, special=lm.engine.special)[
        0
    ].value
    ((value, _),) = lm.loglikelihood([Instance("loglikelihood", {}, (context, choice), 0)], True)
    assert value == pytest.approx(expected, abs=likelihood_error(lm.engine.model, len(ids[1])))


# ---- repeats and the response cache

REPEATS = """output_type: generate_until
doc_to_text: "{{puzzle}}"
doc_to_target: "{{solution}}"
repeats: 4
generation_kwargs: {until: ["\\n"], max_gen_toks: 16}
filter_list: [{name: maj, filter: [{function: majority_vote}, {function: take_first}]}]
metric_list: [{metric: exact_match}]
"""


def sampled(tiny_checkpoint: Path, **options: object) -> LLaDA:
    return LLaDA(
        str(tiny_checkpoint), device="cpu", temperature=1.5, steps=4, batch_size=4, **options
    )


def answers_of(results: dict) -> list[list[str]]:
    return [sample["resps"][0] for sample in results["samples"]["reported"]]


def test_a_second_run_with_a_cache_gives_the_same_four_different_answers(
    tiny_checkpoint, tmp_path, monkeypatch
):
    # two are equal
    docs = [{"puzzle": puzzle, "solution": "1"} for puzzle in ("12..", "..34", "12..")]
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    path = str(tmp_path / "cache")
    without, first, second = (
        answers_of(evaluated(sampled(tiny_checkpoint), tmp_path, REPEATS, docs, use_cache=cache))
        for cache in (None, path, path)
    )
    assert first == second == without
    assert [len(set(answers)) for answers in first] == [4, 4, 4]
    assert len(set(first[0] + first[2])) == 8


def test_a_run_that_was_killed_among_repeats_goes_on_with_the_others(tiny_checkpoint, tmp_path):
    requests = [
        request for request in generation(["12..", "..34"], max_gen_toks=16) for _ in range(4)
    ]
    expected = sampled(tiny_checkpoint).generate_until(requests, True)
    lm = sampled(tiny_checkpoint)
    caching, whole = CachingLM(lm, str(tmp_path / "cache.db")), lm.engine.generate

    def breaks(parsed):
        for number, item in enumerate(whole(parsed)):
            if number == 6:
                raise KeyboardInterrupt
            yield item

    lm.engine.generate = breaks
    with pytest.raises(KeyboardInterrupt):
        caching.generate_until(requests)
    asked: list[int] = []
    lm.engine.generate = lambda parsed: (asked.append(len(parsed)), whole(parsed))[1]
    assert caching.generate_until(requests) == expected  # of one process, which goes on
    again = CachingLM(sampled(tiny_checkpoint), str(tmp_path / "cache.db"))
    again.lm.engine.generate = None  # of another, with nothing left to do
    assert again.generate_until(requests) == expected and asked == [2]
    assert again.generate_until(requests[2:6]) == expected[:2] + expected[4:6]  # counted anew


def test_answers_that_lm_eval_never_caches_are_different_too(tiny_checkpoint, tmp_path):
    requests = generation(["12.."], max_gen_toks=16, do_sample=True, temperature=1.5) * 4
    caching = CachingLM(LLaDA(str(tiny_checkpoint), device="cpu"), str(tmp_path / "cache.db"))
    first = caching.generate_until(requests)
    assert len(set(first)) == 4 and caching.generate_until(requests) == first


def test_a_cache_keeps_equal_likelihood_requests(tiny_checkpoint, tmp_path):
    requests = [
        Instance("loglikelihood", {}, pair, 0) for pair in (("a", "b"), ("c", "d"), ("a", "b"))
    ]
    caching = CachingLM(
        LLaDA(str(tiny_checkpoint), device="cpu", mc_num=8), str(tmp_path / "cache.db")
    )
    first = caching.loglikelihood(requests)
    caching.lm.engine.log_likelihood = None
    assert caching.loglikelihood(requests) == first


# ---- results say what was run

GREEDY = """output_type: generate_until
doc_to_text: "{{puzzle}}"
doc_to_target: "{{solution}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 16, do_sample: false}
metric_list: [{metric: exact_match}]
"""
DOCS = [{"puzzle": "12..", "solution": "1"}, {"puzzle": "..34", "solution": "1"}]


def test_the_results_hold_the_sampler_that_a_task_used(tiny_checkpoint, tmp_path):
    lm, path = sampled(tiny_checkpoint), str(tmp_path / "cache")
    config = evaluated(lm, tmp_path, GREEDY, DOCS, use_cache=path)["config"]
    assert (
        config["sampler"]["temperature"],
        config["sampler"]["gen_length"],
        config["sampler"]["steps"],
    ) == (0.0, 16, 4)
    assert config["samplers"] == {"reported": [config["sampler"]]}
    cached = evaluated(sampled(tiny_checkpoint), tmp_path, GREEDY, DOCS, use_cache=path)["config"]
    assert cached["samplers"] == config["samplers"] and cached["sampler"] == config["sampler"]


def test_results_of_one_model_in_several_runs_are_those_of_each_run(tiny_checkpoint, tmp_path):
    lm = sampled(tiny_checkpoint, max_length=40)
    long = [*DOCS, {"puzzle": "1" * 60, "solution": "1"}]
    evaluated(lm, tmp_path, GREEDY, long, gen_kwargs=dict(steps=2))
    later = evaluated(lm, tmp_path, GREEDY, DOCS)["config"]
    alone = evaluated(sampled(tiny_checkpoint, max_length=40), tmp_path, GREEDY, DOCS)["config"]
    assert later["decoding"]["reported"]["answers"] == 2
    for costs in (later["decoding"]["reported"], alone["decoding"]["reported"]):
        del costs["seconds"]
    for name in ("decoding", "samplers", "sampler", "overlong_requests"):
        assert later[name] == alone[name]
    assert later["manifest"]["options_of_requests"] == alone["manifest"]["options_of_requests"]


def test_a_run_without_a_cache_after_one_with_it_decodes(tiny_checkpoint, tmp_path):
    lm, path = sampled(tiny_checkpoint), str(tmp_path / "cache")
    counted = [
        evaluated(lm, tmp_path, GREEDY, DOCS, **cache)["config"]["decoding"]["reported"]
        for cache in (dict(use_cache=path), dict(use_cache=path), {}, dict(use_cache=path))
    ]
    assert [each["from_cache"] for each in counted] == [0, 2, 0, 2]


def test_a_run_without_chats_after_one_with_them_is_none(tiny_checkpoint, tmp_path):
    lm = LLaDA(str(tiny_checkpoint), device="cpu", gen_length=16)
    evaluated(lm, tmp_path, GREEDY, DOCS, apply_chat_template=True)
    assert lm._chats
    evaluated(lm, tmp_path, GREEDY, DOCS)
    assert not lm._chats


# ---- requests that lm-eval wrote down


def test_requests_from_a_file_must_have_the_options_of_the_command_line(
    tiny_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr("lm_eval.caching.cache.PATH", str(tmp_path / "requests"))
    lm = sampled(tiny_checkpoint)

    def steps(given: int, **options) -> int:
        asked = dict(cache_requests=True, gen_kwargs=dict(steps=given), **options)
        return evaluated(lm, tmp_path, GREEDY, DOCS, **asked)["config"]["sampler"]["steps"]

    assert (steps(2), steps(2)) == (2, 2)
    message = "reported were written with steps=2, and --gen_kwargs says 8: give .* refresh"
    with pytest.raises(ValueError, match=message):
        steps(8)
    assert steps(8, rewrite_requests_cache=True) == 8


def test_requests_are_filed_by_the_template_of_their_chats(tiny_checkpoint):
    lm = LLaDA(str(tiny_checkpoint), device="cpu")
    names = []
    for template in (None, "Q", "A", {"default": "A", "other": "Q"}):
        lm.tokenizer.chat_template = template
        names.append(lm.tokenizer_name)
    assert len(set(names)) == 3 and names[2] == names[3]
    lm.engine.use_template("other")
    assert lm.tokenizer_name == names[1]


def test_options_in_which_tasks_differ_are_told_by_task(tiny_checkpoint):
    lm = LLaDA(str(tiny_checkpoint), device="cpu", steps=4)
    for task, options in {
        "one": {"max_gen_toks": 8},
        "two": {"max_gen_toks": 16, "remasking": "random"},
    }.items():
        lm.generate_until([Instance("generate_until", {}, ("12", options), 0, (task, 0, 1))], True)
    info = json.loads(json.dumps(lm.get_model_info()))
    assert (info["sampler"]["gen_length"], info["sampler"]["steps"]) == ("see samplers", 4)
    assert info["confidence_source"] == "see samplers"
    assert {
        task: [each["gen_length"] for each in used] for task, used in info["samplers"].items()
    } == {"one": [8], "two": [16]}


def test_without_answers_the_results_hold_the_models_options(tiny_checkpoint):
    lm = LLaDA(str(tiny_checkpoint), device="cpu", steps=4, mc_num=4)
    lm.loglikelihood([Instance("loglikelihood", {}, ("a", "b"), 0)], True)
    info = lm.get_model_info()
    assert (info["sampler"]["steps"], info["sampler"]["gen_length"]) == (
        4,
        None,
    )
    assert "samplers" not in info


@pytest.mark.parametrize(
    ("seed", "model_args", "task", "told"),
    [
        (7, {"temperature": 1.0}, REPEATS, ["answers: give seed="]),
        (1234, {"temperature": 1.0}, REPEATS, []),
        (7, {"temperature": 1.0, "seed": 7}, REPEATS, []),
        (7, {"temperature": 1.0}, GREEDY, []),
    ],
)
def test_a_seed_that_changes_no_answer_is_told_with_the_one_that_does(
    tiny_checkpoint, tmp_path, caplog, seed, model_args, task, told
):
    lm = LLaDA(str(tiny_checkpoint), device="cpu", steps=4, **model_args)
    with caplog.at_level(logging.WARNING):
        evaluated(lm, tmp_path, task, DOCS[:1], torch_random_seed=seed)
    found = [message for message in caplog.messages if "--seed" in message]
    assert len(found) == len(told) and all(part in message for part, message in zip(told, found))


def test_a_seed_that_changes_no_likelihood_is_told(tiny_checkpoint, caplog):
    pair = [Instance("loglikelihood", {}, ("a", "bcdefgh"), 0)]
    with caplog.at_level(logging.WARNING), torch.random.fork_rng():
        torch.manual_seed(7)
        for options in ({"mc_seed": 3}, {"estimator": "chain"}, {}):
            LLaDA(str(tiny_checkpoint), device="cpu", mc_num=4, **options).loglikelihood(pair, True)
    assert [message for message in caplog.messages if "--seed" in message] == [
        "--seed (torch's is 7) has no effect on likelihoods: give mc_seed= in model_args"
    ]


# ---- what stock code calls

STRINGS = ["a", "some words", "<|startoftext|>with BOS", ""]


class Stock:
    """lm-eval's own functions of HFLM on our tokenizer."""

    backend, add_bos_token = "causal", None
    tok_encode = HFLM.tok_encode
    tok_batch_encode = HFLM.tok_batch_encode
    tok_decode = HFLM.tok_decode

    def __init__(self, lm: LLaDA) -> None:
        self.tokenizer, self.prefix_token_id = lm.tokenizer, lm.prefix_token_id


@pytest.fixture(scope="module")
def lm(tiny_checkpoint) -> LLaDA:
    return LLaDA(str(tiny_checkpoint), device="cpu")


@pytest.mark.parametrize(
    "options",
    [{}, {"left_truncate_len": 3}, {"add_special_tokens": False}, {"left_truncate_len": 0}],
    ids=str,
)
def test_strings_are_encoded_as_by_lm_evals_own_models(lm, options):
    expected = [Stock(lm).tok_encode(string, **options) for string in STRINGS]
    assert (
        [lm.tok_encode(string, **options) for string in STRINGS]
        == lm.tok_encode(STRINGS, **options)
        == expected
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding_side": "right"},
        {"left_truncate_len": 4},
        {"left_truncate_len": 40},
        {"truncation": True},
    ],
    ids=str,
)
def test_batches_are_encoded_as_by_lm_evals_own_models(lm, options):
    for found, expected in zip(
        lm.tok_batch_encode(STRINGS[:2], **options),
        Stock(lm).tok_batch_encode(STRINGS[:2], **options),
    ):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("skip", [True, False])
def test_ids_are_decoded_as_by_lm_evals_own_models(lm, skip):
    for string in STRINGS:
        ids = lm.tok_encode(string)
        assert lm.tok_decode(ids, skip) == Stock(lm).tok_decode(ids, skip_special_tokens=skip)
    assert lm.tok_decode(lm.tok_encode("a")[0]) == "a"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"batch_size": 4}, {}),
        ({"batch_size": "auto"}, {0: 32}),
        ({"batch_size": "auto:4", "max_batch_size": 8}, {0: 8}),
    ],
    ids=str,
)
def test_batch_sizes_are_those_that_were_chosen_here(tiny_checkpoint, given, expected):
    assert LLaDA(str(tiny_checkpoint), device="cpu", **given).batch_sizes == expected


@pytest.mark.parametrize(
    ("model_args", "name"),
    [({}, "tiny"), ({"steps": 4}, "tiny"), ({"pretrained": "nim"}, "nim")],
    ids=str,
)
def test_the_results_folder_is_named_after_the_model(tmp_path, model_args, name):
    tracker = EvaluationTracker(output_path=str(tmp_path / "out"))
    results = evaluated(
        "llada",
        tmp_path,
        GREEDY,
        DOCS[:1],
        model_args=dict(model_args),
        device="cpu",
        evaluation_tracker=tracker,
    )
    tracker.save_results_aggregated(results=results, samples=None)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_a_prompt_with_the_mask_token_is_refused_before_any_is_decoded(lm):
    with pytest.raises(
        ValueError, match=r"prompt 1 holds the mask token \(id \d+\) at position 2: .*take it out"
    ):
        lm.generate_until(generation(["12", "ab<|mdm_mask|>"], max_gen_toks=8), True)
    with pytest.raises(ValueError, match=r"prompt 0 holds the mask token \(id \d+\) at position 1"):
        lm.loglikelihood([Instance("loglikelihood", {}, ("a<|mdm_mask|>b", "c"), 0)], True)
