"""Requests that do not fit a context: lm-eval's tokens are kept, every rule tells and marks."""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from llada_plugins.engine.engine import Completion, Engine, Request
from llada_plugins.evaluate import main as evaluate
from llada_plugins.likelihood.estimate import LogLikelihood
from llada_plugins.lmeval_models import LLaDA
from llada_plugins.models.folder import TINY
from llada_plugins.opencompass_models import LLaDA as OpenCompassLLaDA
from llada_plugins.rewards.process_reward_model import PRMConfig, load_prm
from llada_plugins.rewards.steps import block_scorer
from llada_plugins.tasks import sudoku
from tests.tolerance import token_error

pytestmark = pytest.mark.floats

CONTEXT = 40  # tokens of the engine's context; bytes are tokens here
FAST = dict(gen_length=8, steps=2)
LONG = "".join(chr(ord("a") + number % 26) for number in range(60))
PROMPTS = ["short", LONG, "another"]
BOTH = ["truncate", "skip"]


@pytest.fixture
def make(tiny_checkpoint) -> Callable[..., Engine]:
    """A function from options to an engine of a small context, which notes the prompts
    that it decodes.
    """

    def engine(method: str = "llada", **options) -> Engine:
        given = {
            "pretrained": str(tiny_checkpoint),
            "device": "cpu",
            "max_length": CONTEXT,
            **FAST,
            **options,
        }
        made = Engine(method, **given)
        made.seen, plain = set(), made.denoise

        def noting(canvas, window):
            for row, start in zip(canvas.tokens.tolist(), canvas.answer_start.tolist()):
                made.seen.add(tuple(token for token in row[:start] if token >= 0))
            return plain(canvas, window)

        made.denoise = noting
        return made

    return engine


def never(canvas, window):
    raise AssertionError("a forward ran")


def answers(engine: Engine, prompts: list[str] = PROMPTS, **options) -> list[Completion]:
    sampler = engine.sampler_for(options)
    found = dict(engine.generate([Request(prompt, sampler) for prompt in prompts]))
    return [found[number] for number in range(len(prompts))]


def likelihoods(engine: Engine, pairs: list[tuple[list[int], list[int]]]) -> list[LogLikelihood]:
    found = dict(engine.log_likelihood(pairs))
    return [found[number] for number in range(len(pairs))]


# ---- lm-eval's rule


def kept_by_lm_eval(engine: Engine, prompt: str, max_gen_toks: int) -> list[int]:
    """What stock lm-eval's own model of transformers feeds, by its own code."""
    stand_in = SimpleNamespace(tokenizer=engine.tokenizer, backend="causal", add_bos_token=None)
    room = engine.max_length - max_gen_toks
    ids, _ = HFLM.tok_batch_encode(stand_in, [prompt], left_truncate_len=room)
    return ids[0].tolist()


@pytest.mark.parametrize("length", [1, 31, 32, 33, 60, 300])
@pytest.mark.parametrize("gen_length", [1, 8, 39])
def test_of_a_prompt_the_tokens_are_decoded_that_lm_eval_keeps(make, length, gen_length):
    engine = make()
    prompt = (LONG * 5)[:length]
    answers(engine, [prompt], gen_length=gen_length, steps=1)
    assert engine.seen == {tuple(kept_by_lm_eval(engine, prompt, gen_length))}


@pytest.mark.parametrize("sizes", [(50, 3), (38, 3), (37, 3), (0, 40), (5, 40)])
def test_of_a_context_the_end_is_given_that_fits_beside_the_answer(make, sizes):
    engine = make(mc_num=3)
    context, answer = ([number % 50 for number in range(size)] for size in sizes)
    (found,) = likelihoods(engine, [(context, answer)])
    room = CONTEXT - len(answer)
    (expected,) = likelihoods(engine, [(context[len(context) - min(room, len(context)) :], answer)])
    assert found == expected._replace(overlong="truncated" if len(context) > room else None)


def test_of_an_answer_longer_than_the_context_the_last_tokens_are_scored(make):
    engine = make(mc_num=3)
    answer = [number % 50 for number in range(CONTEXT + 7)]
    found, cut = likelihoods(engine, [([1, 2, 3], answer), ([], answer[7:])])
    assert found == cut._replace(overlong="truncated")
    assert engine.overlong.num_scored(len(answer)) == CONTEXT and engine.overlong.num_scored(3) == 3


# ---- three rules


@pytest.mark.parametrize("rule", BOTH)
def test_one_long_prompt_leaves_the_other_answers_as_they_are_and_is_marked(make, rule, caplog):
    engine = make(overlong=rule, batch_size=2)
    alone = [answers(engine, [prompt])[0].text for prompt in (PROMPTS[0], LONG[-32:], PROMPTS[2])]
    caplog.clear()
    found = answers(engine)
    assert [each.text for each in found] == [
        alone[0],
        alone[1] if rule == "truncate" else "",
        alone[2],
    ]
    mark = {"truncate": "truncated", "skip": "skipped"}[rule]
    assert [each.overlong for each in found] == [None, mark, None]
    assert engine.overlong.counts == {mark: 1}
    if rule == "skip":
        assert (found[1].num_forwards, found[1].num_tokens, found[1].seconds) == (0, 0, 0.0)


@pytest.mark.parametrize("rule", BOTH)
def test_one_warning_counts_them_and_names_the_first_by_both_ends_of_its_prompt(make, rule, caplog):
    with caplog.at_level(logging.WARNING):
        answers(make(overlong=rule), ["short", LONG, LONG + "!"])
    (said,) = [
        record.getMessage() for record in caplog.records if "overlong" in record.getMessage()
    ]
    assert said.startswith("2 of 3 requests do not fit and are ")
    assert f"(overlong={rule}); the first, number 2: " in said
    assert (
        f"a prompt of 60 tokens and gen_length (8) exceed the context of {CONTEXT} tokens" in said
    )
    assert f"begins {LONG[:40]!r}, ends {LONG[-40:]!r}" in said


def test_error_tells_all_of_them_before_anything_is_decoded(make):
    engine = make(overlong="error")
    engine.denoise = never
    with pytest.raises(
        ValueError,
        match=r"a prompt of 60 tokens .* \(2 of 4 requests do not fit\): use fewer shots .* "
        r"overlong=truncate",
    ):
        answers(engine, [*PROMPTS, LONG])
    with pytest.raises(
        ValueError,
        match=r"a context of 60 and an answer of 2 tokens exceed .* \(2 of 3 requests do not fit\)",
    ):
        likelihoods(engine, [([1], [2]), ([1] * 60, [2, 3]), ([1], [2] * 60)])


@pytest.mark.parametrize("rule", ["truncate", "skip", "error"])
def test_an_answer_that_leaves_no_room_for_any_prompt_is_an_error_whatever_the_rule(make, rule):
    engine = make(overlong=rule)
    engine.denoise = never
    with pytest.raises(
        ValueError,
        match=rf"a prompt and gen_length \({CONTEXT}\) exceed the context of {CONTEXT} tokens, "
        r"however short",
    ):
        answers(engine, gen_length=CONTEXT, steps=1)


def test_a_skipped_likelihood_is_minus_infinity_and_costs_nothing(make, tmp_path):
    log = tmp_path / "log.jsonl"
    engine = make(overlong="skip", mc_num=3, greedy_check=True, likelihood_log=str(log))
    fits = ([1, 2], [3, 4])
    found = likelihoods(engine, [([1] * 60, [2]), fits, ([], [5] * 41)])
    assert found[0] == found[2] == LogLikelihood(-math.inf, 0.0, 0, False, "skipped")
    assert found[1] == likelihoods(engine, [fits])[0] and found[1].overlong is None
    assert engine.overlong.counts == {"skipped": 2}
    lines = [
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        for line in log.read_text().splitlines()
    ]
    assert [(line.get("overlong"), line["value"] is None) for line in lines[:3]] == [
        ("skipped", True),
        ("skipped", True),
        (None, False),
    ]


def test_the_rule_is_part_of_what_identifies_answers_and_of_results(make):
    engines = [make(overlong=rule) for rule in ("truncate", "skip", "error")]
    assert len({engine.fingerprint() for engine in engines}) == 3
    assert [engine.info()["overlong"] for engine in engines] == ["truncate", "skip", "error"]
    with pytest.raises(
        ValueError, match="overlong must be one of 'truncate', 'skip', 'error', got 'cut'"
    ):
        make(overlong="cut")


# ---- process reward models

PUZZLE = sudoku.problems("test", 1)[0].puzzle


@pytest.fixture(scope="module")
def overhead() -> int:
    """Tokens of the puzzle and one step of one token for the shipped judge, less that token."""
    scorer = load_prm(PRMConfig(prm=str(TINY / "prm")), "cpu")
    return len(scorer.encoder(PUZZLE, ["1"]).ids) - 1


@pytest.fixture
def judged(overhead) -> Callable[..., Engine]:
    """A function from the room that the judge has beside the puzzle to an engine."""

    def make(room: int, **options) -> Engine:
        return Engine(
            "llada_prm",
            device="cpu",
            gen_length=16,
            steps=4,
            prm_max_length=overhead + room,
            **options,
        )

    return make


def asked_of(engine: Engine) -> set[str]:
    """The questions that the judge will be told."""
    scorer, questions = engine.prepared.judge.scorer, set()
    score = scorer.score

    def noting(solutions, heard):
        found = score(solutions, heard)
        questions.update(question for question, _ in solutions)
        return found

    scorer.score = noting
    return questions


def test_a_question_that_leaves_the_judge_no_room_for_the_answer_is_cut_before_decoding(
    judged, caplog
):
    engine = judged(
        16 + 4 - 5
    )  # the answer's four rows end with a separator each, and five tokens are missing
    questions = asked_of(engine)
    (found,) = answers(engine, [PUZZLE])
    assert found.overlong == "truncated" and found.num_prm_calls > 0 and len(found.text) == 16
    assert all(PUZZLE.endswith(question) and len(question) < len(PUZZLE) for question in questions)
    assert questions
    assert "a question and gen_length (16) exceed the PRM's context" in caplog.text


@pytest.mark.parametrize("rule", ["skip", "error"])
def test_such_a_question_is_skipped_or_refused_before_decoding(judged, rule):
    engine = judged(10, overlong=rule)
    engine.denoise = never
    if rule == "skip":
        (found,) = answers(engine, [PUZZLE])
        assert (found.text, found.overlong) == ("", "skipped")
        return
    with pytest.raises(
        ValueError,
        match="a question and gen_length .16. exceed the PRM's context of .*prm_max_length",
    ):
        answers(engine, [PUZZLE])


def test_an_answer_with_more_tokens_for_the_judge_than_foreseen_does_not_end_the_run(
    judged, caplog
):
    engine = judged(16 + 1)  # room for 16 tokens and one separator; rows have four separators
    questions = asked_of(engine)
    (found,) = answers(engine, [PUZZLE])
    assert found.overlong == "truncated"
    assert engine.overlong.counts == {"truncated": 1}
    assert len(found.text) == 16
    assert PUZZLE in questions and len(questions) > 1  # whole as long as it fits
    assert "of which it is told the end alone" in caplog.text


def test_a_request_whose_prompt_and_question_are_cut_counts_once(judged):
    engine = judged(10, max_length=len(PUZZLE) + 16 - 3)
    (found,) = answers(engine, [PUZZLE])
    assert found.overlong == "truncated" and engine.overlong.counts == {"truncated": 1}


def test_enough_room_marks_nothing(judged):
    engine = judged(16 + 4)
    questions = asked_of(engine)
    (found,) = answers(engine, [PUZZLE])
    assert found.overlong is None and questions == {PUZZLE} and not engine.overlong.counts


def test_an_answer_that_no_question_fits_beside_is_an_error_before_decoding(judged):
    engine = judged(16 - len(PUZZLE))
    engine.denoise = never
    with pytest.raises(
        ValueError,
        match="exceed the PRM's context of .* however short the question: .*prm_max_length",
    ):
        answers(engine, [PUZZLE])


def test_blocks_of_a_solution_that_alone_is_too_long_have_no_score():
    scorer = load_prm(PRMConfig(prm=str(TINY / "prm"), prm_max_length=12), "cpu")
    cut: list[int] = []
    score = block_scorer(
        scorer,
        ["12", "34"],
        block=4,
        ends=(),
        by="block",
        shorten=cut.append,
        decode=lambda ids: "".join(map(str, ids)),
    )
    long, short = [1, 2, 3, 4] * 4, [1, 2, 3, 4]
    found = score([1, 0], [long, short])
    assert found[0] == [None] * 4 and found[1][0] is not None and cut == [1]


def test_the_longest_end_of_a_question_that_fits_is_told():
    scorer = load_prm(PRMConfig(prm=str(TINY / "prm")), "cpu")
    question = "123456789"
    for limit in range(2, 16):
        scorer.max_length = limit
        fitting = [
            start
            for start in range(len(question))
            if len(scorer.encoder(question[start:], ["1"]).ids) + 2 <= limit
        ]
        assert scorer.shortened(question, ["1"], 2) == (question[fitting[0] :] if fitting else None)


# ---- result files


def instances(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


@pytest.mark.parametrize("rule", BOTH)
def test_sample_logs_and_results_of_lm_eval_mark_what_did_not_fit(tiny_checkpoint, rule):
    mark = {"truncate": "truncated", "skip": "skipped"}[rule]
    model = LLaDA(
        str(tiny_checkpoint), device="cpu", max_length=CONTEXT, overlong=rule, mc_num=3, **FAST
    )
    asked = instances("generate_until", *((prompt, {"until": []}) for prompt in PROMPTS))
    texts = model.generate_until(asked, disable_tqdm=True)
    assert (texts[1] == "") == (rule == "skip")
    scored = instances("loglikelihood", ("short", " a"), (LONG, " a"))
    values = model.loglikelihood(scored, disable_tqdm=True)
    assert (values[1][0] == -math.inf) == (rule == "skip") and math.isfinite(values[0][0])
    for request in (*asked, *scored):
        assert len(request.args) == 2  # keys of a cache do not change
        request.resps.append("answered")
    assert [request.args[2]["overlong"] for request in asked] == [None, mark, None]
    assert [request.args[2].get("overlong") for request in scored] == [None, mark]
    info = model.get_model_info()
    assert info["overlong"] == rule and info["overlong_requests"] == {mark: 2}


@pytest.mark.parametrize("rule", BOTH)
def test_opencompass_records_and_means_hold_what_did_not_fit(tiny_checkpoint, rule):
    mark = {"truncate": "truncated", "skip": "skipped"}[rule]
    model = OpenCompassLLaDA(
        str(tiny_checkpoint),
        max_seq_len=CONTEXT,
        record_stats=True,
        overlong=rule,
        mc_num=3,
        **FAST,
    )
    found = model.generate(PROMPTS, 8)
    assert [each["overlong"] for each in found] == [None, mark, None]
    assert (found[1]["prediction"] == "") == (rule == "skip")
    scored = []

    def keep(pairs, units):
        found = model.estimates(pairs, len(pairs))
        scored.extend(found[pair] for pair in pairs)
        return [found[pair] for pair in pairs]

    with model.scored_by(keep):
        long, fitting = model.get_ppl([LONG, "short"])
    # what our inferencers write beside the value
    assert [each.error().get("overlong") for each in scored] == [mark, None]
    assert math.isfinite(fitting)
    (last,) = likelihoods(model.engine, [([], model.engine.encode(LONG)[-CONTEXT:])])
    # the mean is over the tokens that were scored
    expected = math.inf if rule == "skip" else -last.value / CONTEXT
    # in other company: processors without wide registers then round another last bit
    assert long == pytest.approx(expected, rel=0, abs=token_error(model.engine.model))


@pytest.mark.parametrize("rule", BOTH)
def test_the_evaluate_commands_rows_and_summary_mark_what_did_not_fit(
    tiny_checkpoint, tmp_path, capsys, rule
):
    data, output = tmp_path / "data.jsonl", tmp_path / "metrics.csv"
    data.write_text(
        "".join(
            json.dumps({"question": question, "answer": "4"}) + "\n" for question in ("2+2", LONG)
        )
    )
    evaluate(
        [
            "--data",
            str(data),
            "--output",
            str(output),
            "--pretrained",
            str(tiny_checkpoint),
            "--device",
            "cpu",
            "--chat",
            "false",
            "--instruction",
            "",
            "--gen_length",
            "8",
            "--steps",
            "2",
            "--max_length",
            str(CONTEXT),
            "--overlong",
            rule,
        ]
    )
    with output.open() as file:
        rows = {row["index"]: row for row in csv.DictReader(file)}
    assert [rows[number]["overlong"] for number in "01"] == [
        "",
        {"truncate": "truncated", "skip": "skipped"}[rule],
    ]
    assert "; 1 did not fit the context, see the column overlong" in capsys.readouterr().out
