"""OpenCompass: the class beside Engine, templates, likelihoods, the data set; then
stock `opencompass` on our configs, from the outside.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import pytest

pytest.importorskip("opencompass")

from datasets import Dataset, DatasetDict
from mmengine.config import Config
from opencompass.datasets.base import BaseDataset
from opencompass.models.base import BaseModel
from opencompass.openicl import icl_inferencer as stock
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever
from opencompass.registry import MODELS
from opencompass.utils.prompt import PromptList

from llada_plugins.engine.engine import Engine, Request
from llada_plugins.methods.prepared import Judge
from llada_plugins.models.text import without_special_tokens
from llada_plugins.opencompass_inferencers import LLInferencer, PPLInferencer
from llada_plugins.opencompass_models import LLaDA, unwrap_prediction
from llada_plugins.options.fields import names
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.settings.table import find
from llada_plugins.tasks import sudoku
from llada_plugins.tasks.opencompass import Sudoku4Dataset, Sudoku4Evaluator
from tests.commands import python
from tests.tolerance import likelihood_error, token_error

pytestmark = pytest.mark.floats

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
DATA = ROOT.parent / "shared" / "data"
CHAT = (
    "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
OPTIONS = dict(gen_length=8, steps=4, block_length=4, mc_num=16)
PROMPTS = ["ab", "a longer prompt", "c", "ab"]


def rounds(*turns: tuple[str, str]) -> PromptList:
    """A template as OpenCompass hands it over: HUMAN and BOT turns between section marks."""
    return PromptList(
        [
            {"section": "round", "pos": "begin"},
            *({"role": role, "prompt": prompt} for role, prompt in turns),
            {"section": "round", "pos": "end"},
        ]
    )


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> LLaDA:
    return LLaDA(str(tiny_checkpoint), **OPTIONS)


@pytest.fixture(scope="module")
def chat_model(tiny_checkpoint: Path) -> LLaDA:
    return LLaDA(str(tiny_checkpoint), chat=True, **OPTIONS)


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> Engine:
    return Engine(pretrained=str(tiny_checkpoint), **OPTIONS)


def answers(engine: Engine, prompts: list[str], until: tuple[str, ...] = ()) -> list[str]:
    found = dict(engine.generate([Request(prompt, engine.sampler, until) for prompt in prompts]))
    return [found[number].text for number in range(len(prompts))]


QUESTION = rounds(("HUMAN", "Q"), ("BOT", "A"), ("HUMAN", "R"))
ANSWERED = rounds(("HUMAN", "Q"), ("BOT", "A"))
MESSAGES = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "Q"},
    {"role": "assistant", "content": ""},
]


@pytest.mark.parametrize(
    ("template", "gen", "ppl"),
    [
        ("text", "text", "text"),
        (QUESTION, "Q\nA\nR", "Q\nA\nR"),
        (ANSWERED, "Q\nA", "Q\nA"),
        (MESSAGES, "S\nQ", "S\nQ"),
        (PromptList(), "", ""),
        (["x", ANSWERED], ["x", "Q\nA"], ["x", "Q\nA"]),
        ((ANSWERED, MESSAGES), ["Q\nA", "S\nQ"], ["Q\nA", "S\nQ"]),
        ([MESSAGES], ["S\nQ"], ["S\nQ"]),
    ],
    ids=[
        "string",
        "rounds",
        "ends with the model",
        "messages",
        "empty",
        "list",
        "tuple",
        "list of messages",
    ],
)
def test_without_chat_turns_are_joined_by_newlines(model, template, gen, ppl) -> None:
    assert model.parse_template(template, "gen") == gen
    assert model.parse_template(template, "ppl") == ppl


@pytest.mark.parametrize(
    ("template", "gen", "ppl"),
    [
        ("text", CHAT.format("text"), "text"),
        (rounds(("HUMAN", "Q"), ("HUMAN", "R")), CHAT.format("Q\nR"), CHAT.format("Q\nR")),
        (ANSWERED, CHAT.format("Q"), CHAT.format("Q") + "A"),
        (
            QUESTION,
            (CHAT + "A<|eot_id|>").format("Q") + CHAT.format("R").removeprefix("<|startoftext|>"),
            ...,
        ),
        (
            MESSAGES,
            CHAT.format("Q")
            .replace("user", "system", 1)
            .replace("Q", "S")
            .split("<|start_header_id|>assistant")[0]
            + CHAT.format("Q").removeprefix("<|startoftext|>"),
            ...,
        ),
        (PromptList(), "", ""),
        (
            (ANSWERED, "text"),
            [CHAT.format("Q"), CHAT.format("text")],
            [CHAT.format("Q") + "A", "text"],
        ),
    ],
    ids=["string", "neighbours", "ends with the model", "rounds", "messages", "empty", "tuple"],
)
def test_with_chat_the_tokenizers_template_renders_the_final_string(
    chat_model, template, gen, ppl
) -> None:
    assert chat_model.parse_template(template, "gen") == gen
    assert chat_model.parse_template(template, "ppl") == (gen if ppl is ... else ppl)


def test_a_chat_names_a_role_that_it_does_not_know(chat_model) -> None:
    with pytest.raises(
        ValueError, match="no role 'TOOL': give the turn a fallback_role, one of HUMAN, BOT, SYSTEM"
    ):
        chat_model.parse_template(rounds(("TOOL", "x")), "gen")
    template = PromptList([{"role": "TOOL", "fallback_role": "HUMAN", "prompt": "x"}])
    assert chat_model.parse_template(template, "gen") == CHAT.format("x")


def test_meta_template_wraps_the_turns(tiny_checkpoint) -> None:
    meta = dict(
        round=[
            dict(role="HUMAN", begin="<h>", end="</h>"),
            dict(role="BOT", begin="<b>", end="</b>", generate=True),
        ]
    )
    model = LLaDA(str(tiny_checkpoint), meta_template=meta, **OPTIONS)
    own_end = dict(meta, eos_token_id=model.engine.special.eos)
    LLaDA(str(tiny_checkpoint), meta_template=own_end, **OPTIONS)  # says nothing new
    assert model.parse_template(ANSWERED, "gen") == "<h>Q</h><b>"
    assert model.parse_template(MESSAGES[1:], "gen") == "<h>Q</h><b>"
    assert model.template_parser.split(ANSWERED) == ("<h>Q</h><b>", "A</b>")


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.8}, {"confidence_source": "random", "seed": 3}, {"threshold": 0.05}],
    ids=str,
)
def test_answers_are_engines_in_the_order_of_the_prompts(tiny_checkpoint, options) -> None:
    model, engine = (
        make(**{**OPTIONS, **options})
        for make in (
            lambda **given: LLaDA(str(tiny_checkpoint), **given),
            lambda **given: Engine(pretrained=str(tiny_checkpoint), **given),
        )
    )
    expected = [answers(engine, [prompt])[0] for prompt in PROMPTS]
    assert model.generate(PROMPTS, max_out_len=99) == expected  # a batch
    # one by one
    assert [model.generate([prompt], max_out_len=99)[0] for prompt in PROMPTS] == expected


def test_with_batch_tokens_a_call_of_many_prompts_is_decoded_a_few_at_a_time(
    tiny_checkpoint, model
) -> None:
    small, rows = LLaDA(str(tiny_checkpoint), batch_tokens=30, **OPTIONS), []
    denoise = small.engine.denoise

    def watched(canvas, window):
        rows.append(len(canvas.tokens))
        return denoise(canvas, window)

    small.engine.denoise = watched
    assert small.generate(PROMPTS * 3, max_out_len=99) == model.generate(
        PROMPTS * 3, max_out_len=99
    )
    assert 1 < max(rows) < len(PROMPTS) * 3


def test_repeated_samples_come_from_num_return_sequences(tiny_checkpoint, caplog) -> None:
    model = LLaDA(
        str(tiny_checkpoint),
        temperature=1.0,
        generation_kwargs={"num_return_sequences": 3},
        **OPTIONS,
    )
    first, second = model.generate(["ab", "c"], 8), model.generate(["c", "ab"], 8)
    assert len(first) == 6 and len(set(first)) == 6
    assert first == second[3:] + second[:3]
    assert not caplog.text
    one, other = LLaDA(str(tiny_checkpoint), temperature=1.0, **OPTIONS).generate(["ab", "ab"], 8)
    # a direct call does not say that they are repeats
    assert one == other and "num_return_sequences=n" in caplog.text


def test_gen_length_decides_before_max_out_len(tiny_checkpoint, model) -> None:
    assert model.engine.sampler_for({}, 99).gen_length == 8
    model = LLaDA(str(tiny_checkpoint), record_stats=True)
    assert model.generate(["ab"], max_out_len=6)[0]["nfe"] <= 6
    assert model.engine.sampler_for({}, 6).gen_length == 6


@pytest.mark.parametrize("stop_words", [[], "z"], ids=["none", "one string"])
def test_the_earliest_stop_word_of_model_and_data_set_ends_the_answer(
    tiny_checkpoint, engine, stop_words
) -> None:
    whole = answers(engine, ["ab"])[0]
    early, late = whole[1], next(letter for letter in whole[2:] if letter not in whole[:2])
    model = LLaDA(str(tiny_checkpoint), stop_words=[*stop_words, late], **OPTIONS)
    assert model.generate(["ab"], 8) == [whole[: whole.index(late)]]
    assert model.generate(["ab"], 8, stopping_criteria=[early]) == [whole[: whole.index(early)]]


def test_stopping_criteria_of_one_string_are_not_its_letters(tiny_checkpoint, engine) -> None:
    whole = answers(engine, ["ab"])[0]
    model = LLaDA(str(tiny_checkpoint), **OPTIONS)
    assert model.generate(["ab"], 8, stopping_criteria=f"{whole[1]}-nowhere") == [whole]
    with pytest.raises(ValueError, match="stopping_criteria must be a string or a list of strings"):
        model.generate(["ab"], 8, stopping_criteria=[1])


def test_statistics_travel_beside_the_text(tiny_checkpoint, engine) -> None:
    model = LLaDA(str(tiny_checkpoint), record_stats=True, **OPTIONS)
    expected = dict(engine.generate([Request(prompt, engine.sampler) for prompt in PROMPTS[:3]]))
    predictions = model.generate(PROMPTS[:3], 8)
    assert [unwrap_prediction(prediction) for prediction in predictions] == [
        expected[n].text for n in range(3)
    ]
    for number, prediction in enumerate(predictions):
        assert (prediction["nfe"], prediction["tokens"]) == (
            expected[number].num_forwards,
            expected[number].num_tokens,
        )
        assert prediction["seconds"] > 0
    assert unwrap_prediction("text") == "text"
    json.dumps(predictions)


def test_likelihood_of_the_last_turn_is_conditional_and_a_mean_over_its_tokens(
    model, chat_model, engine
) -> None:
    templates = [ANSWERED, rounds(("HUMAN", "Q"), ("BOT", "other"))]
    for wrapper, contexts in (
        (model, ["Q", "\nA", "\nother"]),
        (chat_model, [CHAT.format("Q").rstrip(), "\n\nA", "\n\nother"]),
    ):
        pairs = [(engine.encode(contexts[0]), engine.encode(answer)) for answer in contexts[1:]]
        values = dict(engine.log_likelihood(pairs))
        expected = [-values[number].value / len(pairs[number][1]) for number in range(2)]
        # means
        assert wrapper.get_ppl_from_template(templates) == pytest.approx(
            expected, abs=token_error(engine.model)
        )


@pytest.mark.parametrize(
    "template", ["whole text", rounds(("HUMAN", "whole text"))], ids=["string", "one HUMAN turn"]
)
def test_likelihood_without_an_answer_is_joint_after_bos(model, engine, template) -> None:
    ids = engine.encode("whole text")
    ((_, value),) = engine.log_likelihood([([engine.tokenizer.bos_token_id], ids)])
    expected = pytest.approx(-value.value / len(ids), abs=token_error(engine.model))
    assert list(model.get_ppl_from_template([template])) == [expected]
    assert list(model.get_ppl(["whole text", "<|startoftext|>whole text"])) == [expected, expected]


def test_mask_length_tokens_are_given(model, engine) -> None:
    ids = engine.encode("whole text")
    ((_, value),) = engine.log_likelihood([(ids[:6], ids[6:])])
    expected = pytest.approx(-value.value / 4, abs=token_error(engine.model))
    assert list(model.get_ppl_from_template(["whole text"], mask_length=[6])) == [expected]


def test_log_likelihood_is_the_sum_over_the_ending(model, engine) -> None:
    ((_, value),) = engine.log_likelihood([(engine.encode("the cat"), engine.encode(" sat"))])
    expected = pytest.approx(value.value, abs=likelihood_error(engine.model, len(" sat")))
    assert list(model.get_loglikelihood(["the cat sat"], [" sat"])) == [expected]
    with pytest.raises(ValueError, match="must end with its column 'cont'"):
        model.get_loglikelihood(["the cat sat"], ["dog"])


class Choices(BaseDataset):
    """Three questions with two answers each; `cont` is what a log-likelihood task scores."""

    @staticmethod
    def load() -> DatasetDict:
        rows = [
            {"question": question, "first": first, "second": second, "cont": " end.", "gold": "A"}
            for question, first, second in (
                ("Q", "one", "two"),
                ("R", "a longer one", "b"),
                ("Q", "one", "three"),
            )
        ]
        return DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows))


class Letters(Choices):
    """Two questions whose answers differ in their last token of two."""

    @staticmethod
    def load() -> DatasetDict:
        rows = [
            {"question": question, "first": "A", "second": "B", "cont": " end.", "gold": "A"}
            for question in ("first", "last")
        ]
        return DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows))


def written(
    inferencer: type, model: LLaDA, folder: Path, task: type = Choices
) -> tuple[list, dict]:
    """The predictions that stock code gets for `Choices`, and the file."""
    end = " end." if issubclass(inferencer, stock.LLInferencer) else ""
    template = PromptTemplate(
        {
            label: dict(
                round=[
                    dict(role="HUMAN", prompt="{question}"),
                    dict(role="BOT", prompt=answer + end),
                ]
            )
            for label, answer in (("A", "{first}"), ("B", "{second}"))
        }
    )
    data = task(
        reader_cfg=dict(input_columns=["question", "first", "second", "cont"], output_column="gold")
    )
    made = inferencer(model=model, batch_size=2, output_json_filepath=str(folder))
    predictions = made.inference(
        ZeroRetriever(data),
        prompt_template=template,
        output_json_filepath=str(folder),
        output_json_filename=f"{inferencer.__module__}.json",
    )
    return predictions, json.loads((folder / f"{inferencer.__module__}.json").read_text())


@pytest.mark.parametrize(
    ("ours", "theirs", "key"),
    [
        (PPLInferencer, stock.PPLInferencer, "PPL"),
        (LLInferencer, stock.LLInferencer, "Loglikelihood"),
    ],
    ids=["PPL", "LL"],
)
@pytest.mark.parametrize("mc_num", [16, 1])
def test_our_inferencers_add_standard_errors_to_the_stock_file_and_change_nothing(
    tiny_checkpoint, tmp_path, ours, theirs, key, mc_num
) -> None:
    model, found = LLaDA(str(tiny_checkpoint), **{**OPTIONS, "mc_num": mc_num}), {}
    estimates = model.estimates
    model.estimates = lambda pairs, batch_size: found.update(estimates(pairs, batch_size)) or found
    predictions, rows = written(ours, model, tmp_path)
    again, expected = written(ours, model, tmp_path)
    assert (again, expected) == (predictions, rows)  # a model serves several data sets
    for row in rows.values():
        for label in ("label: A", "label: B"):
            prompt = row[label]["prompt"]
            split = (
                len(row["label: A"]["prompt"].split("\n")[0])
                if key == "PPL"
                else prompt.index(" end.")
            )
            pair = model.engine.encode_pair(prompt[:split], prompt[split:])
            ((_, estimate),) = model.engine.log_likelihood([pair])
            unit = len(pair[1]) if key == "PPL" else 1
            bound = likelihood_error(model.engine.model, len(pair[1])) / unit
            assert abs(row[label][key]) == pytest.approx(-estimate.value / unit, abs=bound)
            stderr = row[label].pop("stderr")
            assert (
                stderr is None
                if mc_num == 1
                else stderr == pytest.approx(estimate.stderr / unit, abs=bound)
            )
            assert row[label].pop("num_forwards") == estimate.num_forwards
    # in other batches fp32 rounds otherwise
    with model.scored_by(lambda pairs, units: [found[pair] for pair in pairs]):
        assert (predictions, rows) == written(theirs, model, tmp_path) and len(rows) == 3


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(PPLInferencer, stock.PPLInferencer), (LLInferencer, stock.LLInferencer)],
    ids=["PPL", "LL"],
)
@pytest.mark.parametrize(
    "options", [dict(mc_num=16), dict(mc_num="auto:0.0001", mc_max=64)], ids=str
)
def test_our_inferencers_ask_for_all_labels_together(
    tiny_checkpoint, tmp_path, ours, theirs, options
) -> None:
    """Rows that labels or questions have in common run once, and choices settle each
    other under mc_num=auto.
    """
    model = LLaDA(str(tiny_checkpoint), **{**OPTIONS, **options})
    rows, plain = [], model.engine.denoise

    def denoise(canvas, window):
        rows.extend(canvas.tokens.tolist())
        return plain(canvas, window)

    model.engine.denoise = denoise
    predictions, _ = written(ours, model, tmp_path)
    together = len(rows)
    rows.clear()
    assert written(theirs, model, tmp_path)[0] == predictions and len(rows) > together


def test_our_inferencers_refuse_models_of_others_in_one_line(tmp_path) -> None:
    with pytest.raises(
        ValueError,
        match="llada_plugins' PPLInferencer serves llada_plugins' models, got BaseModel: name "
        "OpenCompass' own",
    ):
        written(PPLInferencer, BaseModel(path="-"), tmp_path)


def test_differences_of_likelihoods_are_refused_before_any_is_estimated(
    tiny_checkpoint, tmp_path
) -> None:
    model = LLaDA(str(tiny_checkpoint), **OPTIONS)
    with pytest.raises(ValueError, match="normalizing_str .* name OpenCompass' own PPLInferencer"):
        PPLInferencer(model).inference(
            None,
            normalizing_str="A:",
            output_json_filepath=str(tmp_path),
            output_json_filename="x.json",
        )
    assert not list(tmp_path.iterdir())


def test_rows_that_choices_have_in_common_run_once(tiny_checkpoint, tmp_path) -> None:
    model = LLaDA(str(tiny_checkpoint), **OPTIONS)
    rows, plain = [], model.engine.denoise
    model.engine.denoise = lambda canvas, window: (
        rows.extend(canvas.tokens.tolist()) or plain(canvas, window)
    )
    counts = []
    for inferencer in (PPLInferencer, stock.PPLInferencer):
        rows.clear()
        written(inferencer, model, tmp_path, Letters)
        counts.append(len(rows))
    # of three masks each, two leave no token in which the choices differ
    assert counts == [2 * 4, 2 * 6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(path="{tiny}", treshold=0.9),
            "unknown option 'treshold' \\(did you mean 'threshold'\\?\\); known: ",
        ),
        (dict(path="{tiny}", record_stat=True), "did you mean 'record_stats'"),
        (
            dict(path="{tiny}", model_path="x"),
            "unknown option 'model_path' \\(did you mean 'path'\\?\\); known: ",
        ),
        (
            dict(path="{tiny}", batch_size_=4),
            "unknown option 'batch_size_' \\(did you mean 'batch_size'\\?\\); known: ",
        ),
        (dict(path="{tiny}", pretrained="x"), "unknown option 'pretrained'"),
        (
            dict(path="{tiny}", gen_length=8, block_length=4, steps=3),
            "steps \\(3\\) must be a multiple of the number of blocks \\(2 = gen_length 8 / ",
        ),
        (dict(path="{tiny}", confidence_source="best"), "confidence_source must be one of"),
        (dict(path="{tiny}", confidence_source="ups"), "needs an unmasking-policy stream"),
        (
            dict(path="{tiny}", generation_kwargs=dict(temperature=1)),
            "takes num_return_sequences only, got temperature",
        ),
        (dict(path="{tiny}", generation_kwargs=dict(num_return_sequences=0)), "at least 1, got 0"),
        (
            dict(path="{tiny}", meta_template=dict(round=[]), chat=True),
            "meta_template and chat exclude each other",
        ),
        (
            dict(path="{tiny}", meta_template=dict(round=[]), record_stats=True),
            "meta_template and record_stats exclude each other",
        ),
        (dict(path="{tiny}", chat="no"), "chat must be true or false, got 'no'"),
        (dict(path="{tiny}", record_stats=2), "record_stats must be true or false, got 2"),
        (dict(path="{tiny}", tokenizer_only="x"), "tokenizer_only must be true or false, got 'x'"),
        (
            dict(path="{tiny}", generation_kwargs=dict(num_return_sequences=True)),
            "num_return_sequences must be a whole number, at least 1, got True",
        ),
        (
            dict(path="{tiny}", meta_template=dict(round=[], eos_token_id=5)),
            r"meta_template's eos_token_id \(5\) ends no answer .* ends are \d+, .*stop_words",
        ),
        (dict(path="{tiny}", max_seq_len=4096), "exceeds the model's context of 128"),
        (dict(path="no/such/folder"), "no such folder"),
        (dict(path="{tiny}", tokenizer="{tiny}/config.json"), "no such folder"),
    ],
    ids=lambda value: None if isinstance(value, str) else ",".join(value),
)
def test_bad_entries_fail_in_one_clear_line_through_opencompass_own_builder(
    tiny_checkpoint, options, message
) -> None:
    given = {
        name: value.format(tiny=tiny_checkpoint) if isinstance(value, str) else value
        for name, value in options.items()
    }
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        MODELS.build(dict(type="llada_plugins.opencompass_models.LLaDA", **given))
    assert "\n" not in str(error.value)


def test_a_chat_without_template_fails_when_the_model_is_built(tiny_checkpoint, tmp_path) -> None:
    for path in tiny_checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="no chat template"):
        LLaDA(str(tmp_path), chat=True)


def test_tokenizer_only_counts_and_renders_without_the_weights(
    tiny_checkpoint, tmp_path, chat_model
) -> None:
    for path in tiny_checkpoint.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    model = LLaDA(str(tmp_path), chat=True, tokenizer_only=True)
    assert model.parse_template(ANSWERED, "gen") == CHAT.format("Q")
    assert model.get_token_len("text") == chat_model.get_token_len("text") == 4
    assert model.get_token_len_from_template(
        [ANSWERED], mode="gen"
    ) == chat_model.get_token_len_from_template([ANSWERED], mode="gen")


def test_the_data_set_holds_the_test_problems_and_any_completion_counts() -> None:
    data = Sudoku4Dataset(
        reader_cfg=dict(input_columns=["puzzle"], output_column="solution"), abbr="sudoku4", num=20
    )
    problems = sudoku.problems("test", 20)
    assert [(row["puzzle"], row["solution"]) for row in data.test] == problems
    assert not {row["puzzle"] for row in data.train} & set(data.test["puzzle"])
    puzzle, solution, other = next(
        (problem.puzzle, problem.solution, grid)
        for problem in problems
        for grid in sudoku.solutions()
        if grid != problem.solution and sudoku.is_valid(problem.puzzle, grid)
    )
    number = data.test["puzzle"].index(puzzle)
    predictions = [problem.solution for problem in problems]
    predictions[number] = other
    assert (
        Sudoku4Evaluator().score(predictions, data.test["solution"], data.test)["accuracy"] == 100
    )
    predictions[number] = (
        solution[::-1] if not sudoku.is_valid(puzzle, solution[::-1]) else "1" * 16
    )
    score = Sudoku4Evaluator().score(predictions, data.test["solution"], data.test)
    assert score["accuracy"] == 95
    assert [detail["correct"] for detail in score["details"]].count(False) == 1


@pytest.mark.parametrize(
    "checkpoint",
    [
        "LLaDA-8B-Instruct",
        "LLaDA-8B-Base",
        "LLaDA-1.5",
        "Dream-v0-Base-7B",
        "Dream-v0-Instruct-7B",
        "iLLaDA-8B-Base",
    ],
)
def test_published_settings_are_valid_and_name_their_predictions_apart(
    monkeypatch, checkpoint
) -> None:
    monkeypatch.setenv("LLADA_MODEL", checkpoint)
    config = Config.fromfile(CONFIGS / "eval_llada_published.py")
    for entry in config.models:
        assert set(entry) == {"type", "abbr", "path", "preset", "batch_size", "run_cfg"}
        preset = find(entry["preset"])
        SamplerConfig(
            **{
                name: preset.options[name]
                for name in names(SamplerConfig)
                if name in preset.options
            }
        )
        assert entry["abbr"] == f"{checkpoint}-{preset.name.partition('/')[2]}"
    assert len({entry["abbr"] for entry in config.models}) == len(config.models) >= 4
    assert len(config.model_dataset_combinations) == len(config.models)


def test_one_preset_of_a_checkpoint_elsewhere_may_be_chosen_with_a_limit(monkeypatch) -> None:
    monkeypatch.setenv("LLADA_PRESET", "llada-8b-instruct/ifeval")
    monkeypatch.setenv("LLADA_PRETRAINED", "/checkpoints/mine/")
    monkeypatch.setenv("LLADA_LIMIT", "5")
    config = Config.fromfile(CONFIGS / "eval_llada_published.py")
    (entry,), (dataset,) = config.models, config.datasets
    assert (entry["abbr"], entry["path"]) == ("mine-ifeval", "/checkpoints/mine")
    assert (dataset["abbr"], dataset["reader_cfg"]["test_range"]) == ("IFEval-first5", "[:5]")


def test_an_unpublished_choice_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("LLADA_TASKS", "gsm9k")
    with pytest.raises(
        ValueError,
        match="no published setting for LLADA_MODEL=LLaDA-8B-Instruct, LLADA_TASKS=gsm9k",
    ):
        Config.fromfile(CONFIGS / "eval_llada_published.py")


def test_a_process_reward_model_is_asked_the_bare_question(monkeypatch, engine) -> None:
    monkeypatch.setenv("LLADA_PRM", "prm")
    monkeypatch.setenv("LLADA_PRETRAINED", "GSAI-ML/LLaDA-8B-Instruct")
    config = Config.fromfile(CONFIGS / "eval_llada_math500.py")
    (entry,) = config.models
    assert entry["type"].__name__ == "LLaDAPRM"
    assert SamplerConfig(**{name: entry[name] for name in ("gen_length", "steps", "block_length")})
    question = "What is\n\nthe user's $x$?\nPlease reason step by step: no."
    prompt = config.datasets[0]["infer_cfg"]["prompt_template"]["template"]["round"][0][
        "prompt"
    ].replace("{problem}", question)
    for asked in (prompt, engine.render_chat([{"role": "user", "content": prompt}])):
        judge = Judge(None, None, "block", entry["question_pattern"])
        assert judge.question(without_special_tokens(engine.tokenizer, asked)) == question


def test_stock_math500_reads_references_from_solutions_and_grades_with_math_verify() -> None:
    pytest.importorskip("math_verify")
    evaluator = Config.fromfile(CONFIGS / "eval_llada_math500.py").datasets[0]["eval_cfg"][
        "evaluator"
    ]["type"]
    solutions = [
        "First $x = 3.$ Then $2x = \\boxed{6}.$",
        "So $\\frac{2}{4} = \\boxed{\\frac{1}{2}}.$",
    ]
    assert (
        evaluator().score(["Hence $\\boxed{6}$.", "$\\boxed{0.5}$"], solutions)["accuracy"] == 100
    )
    assert evaluator().score(["Hence $\\boxed{3}$.", "4"], solutions)["accuracy"] == 0


def run_opencompass(
    cwd: Path, config: Path | str, *arguments: str, **environment: str
) -> CompletedProcess[str]:
    words = ("-m", "opencompass.cli.main", str(config), *arguments)
    return python(*words, cwd=cwd, **{"PYTHONPATH": str(ROOT), **environment})


def table(cwd: Path) -> list[dict[str, str]]:
    """The newest summary, one row a data set; OpenCompass exits with 0 when every task
    failed, and writes '-' there.
    """
    rows = list(csv.DictReader(sorted(cwd.rglob("summary_*.csv"))[-1].open()))
    assert rows and not any(cell == "-" for row in rows for cell in row.values()), rows
    return rows


def predictions_of(cwd: Path, abbr: str, dataset: str) -> list[dict]:
    (found,) = cwd.rglob(f"predictions/{abbr}/{dataset}.json")
    rows = json.loads(found.read_text())
    return [rows[str(number)] for number in range(len(rows))]


def small_config(cwd: Path, *edits: tuple[str, str]) -> Path:
    """A copy of configs/ and a config that cuts eval_llada.py to 12 rows; edits:
    replacements in the copied eval_llada.py.
    """
    shutil.copytree(CONFIGS, cwd / "configs", dirs_exist_ok=True)
    text = (CONFIGS / "eval_llada.py").read_text()
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    (cwd / "configs" / "eval_llada.py").write_text(text)
    path = cwd / "small.py"
    path.write_text(
        "from mmengine.config import read_base\nwith read_base():\n    from .configs.eval_llada "
        "import *\n"
        "datasets[0]['reader_cfg']['test_range'] = '[:12]'\n"
    )
    return path


def check_against_engine(
    cwd: Path, steps: int, name: str = "LLaDA-tiny-gen_length=16-steps={}"
) -> None:
    problems = sudoku.problems("test", 12)
    engine = Engine(gen_length=16, steps=steps)
    rows = predictions_of(cwd, name.format(steps), "sudoku4")
    assert [row["origin_prompt"] for row in rows] == [problem.puzzle for problem in problems]
    assert [row["prediction"] for row in rows] == answers(
        engine, [problem.puzzle for problem in problems]
    )
    correct = [sudoku.is_valid(row["origin_prompt"], row["prediction"]) for row in rows]
    (found,) = cwd.rglob(f"results/{name.format(steps)}/sudoku4.json")
    result = json.loads(found.read_text())
    assert result["accuracy"] == pytest.approx(100 * sum(correct) / 12)
    assert [detail["correct"] for detail in result["details"]] == [[value] for value in correct]


@pytest.mark.slow
def test_stock_opencompass_gives_engines_answers(tmp_path) -> None:
    done = run_opencompass(tmp_path, small_config(tmp_path), "--debug")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (row,) = table(tmp_path)
    assert (row["dataset"], row["metric"], row["mode"]) == ("sudoku4", "accuracy", "gen")
    check_against_engine(tmp_path, 16)
    check_against_engine(tmp_path, 8)


@pytest.mark.slow
def test_a_resumed_run_never_reuses_the_answers_of_other_sampler_options(tmp_path) -> None:
    run_opencompass(tmp_path, small_config(tmp_path))  # every task in its own process
    table(tmp_path)
    check_against_engine(tmp_path, 16)
    (kept,) = tmp_path.rglob("predictions/*steps=16/sudoku4.json")
    written = kept.stat().st_mtime_ns
    done = run_opencompass(
        tmp_path, small_config(tmp_path, ("steps=8", "steps=4")), "--debug", "-r"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list(tmp_path.rglob("predictions"))) == 1 and kept.stat().st_mtime_ns == written
    check_against_engine(tmp_path, 4)


@pytest.mark.slow
def test_statistics_survive_evaluation(tmp_path) -> None:
    edit = (
        "**variant,",
        "record_stats=True, pred_postprocessor=dict(type=unwrap_prediction), **variant,",
    )
    imported = (
        "with read_base",
        "from llada_plugins.opencompass_models import unwrap_prediction\nwith read_base",
    )
    config = small_config(tmp_path, edit, imported)
    done = run_opencompass(tmp_path, config, "--debug")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (row,) = table(tmp_path)
    predictions = [
        prediction["prediction"] for prediction in predictions_of(tmp_path, "*steps=8", "sudoku4")
    ]
    assert {prediction["nfe"] for prediction in predictions} == {8}
    problems = sudoku.problems("test", 12)
    correct = [
        sudoku.is_valid(problem.puzzle, prediction["prediction"])
        for problem, prediction in zip(problems, predictions)
    ]
    # printed with two digits
    assert float(row["LLaDA-tiny-gen_length=16-steps=8"]) == pytest.approx(
        100 * sum(correct) / 12, abs=0.5 * 10**-2
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "dataset", "num_rows", "files"),
    [
        (
            "eval_llada_gsm8k.py",
            "gsm8k-0shot-first20",
            20,
            {"gsm8k/train.jsonl": "gsm8k/train.jsonl", "gsm8k/test.jsonl": "gsm8k/test.jsonl"},
        ),
        (
            "eval_llada_humaneval.py",
            "openai_humaneval",
            164,
            {"humaneval/human-eval-v2-20210705.jsonl": "humaneval/HumanEval.jsonl"},
        ),
        (
            "eval_llada_math500.py",
            "math-500-first20",
            20,
            {"math/test_prm800k_500.jsonl": "math500/test.jsonl"},
        ),
    ],
)
def test_real_data_runs_end_to_end(tmp_path, public, config, dataset, num_rows, files) -> None:
    for name, source in files.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).symlink_to(public(source))
    done = run_opencompass(tmp_path, CONFIGS / config, "--debug", COMPASS_DATA_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (row,) = table(tmp_path)[:1]
    assert row["dataset"] == dataset and float(list(row.values())[-1]) == 0.0  # a sudoku model
    assert len(predictions_of(tmp_path, "LLaDA-tiny-*", dataset)) == num_rows


LIKELIHOOD_CONFIG = """
from mmengine.config import read_base
with read_base():
    from opencompass.configs.datasets.ARC_c.ARC_c_ppl_a450bd import ARC_c_datasets
    from opencompass.configs.datasets.piqa.piqa_ppl_1cf9f0 import piqa_datasets
    from opencompass.configs.datasets.winogrande.winogrande_ll_c5cf57 import winogrande_datasets
from llada_plugins.opencompass_models import LLaDA
datasets = [*ARC_c_datasets, *piqa_datasets, *winogrande_datasets]
for dataset in datasets:
    dataset['reader_cfg']['test_range'] = '[:3]'
common = dict(type=LLaDA, path=None, mc_num=4, batch_size=2, run_cfg=dict(num_gpus=0))
models = [dict(common, abbr='base', chat=False), dict(common, abbr='chat', chat=True)]
"""


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the files of ARC, PIQA and WinoGrande")
def test_stock_likelihood_tasks_run_end_to_end_and_choose_by_engines_numbers(tmp_path) -> None:
    data = tmp_path / "data"
    for folder in ("ARC/ARC-c", "piqa", "winogrande"):
        (data / folder).mkdir(parents=True)
    for split in ("Dev", "Test"):
        (data / f"ARC/ARC-c/ARC-Challenge-{split}.jsonl").symlink_to(
            DATA / f"arc/ARC-Challenge-{split}.jsonl"
        )
    for split in ("train", "dev"):
        (data / f"piqa/{split}.jsonl").symlink_to(DATA / "piqa/dev.jsonl")
        (data / f"piqa/{split}-labels.lst").symlink_to(DATA / "piqa/dev-labels.lst")
    row = {
        "sentence": "Ann beat Bo because _ was faster.",
        "option1": "Ann",
        "option2": "Bo",
        "answer": "1",
    }
    (data / "winogrande" / "dev.jsonl").write_text(3 * (json.dumps(row) + "\n"))
    (tmp_path / "config.py").write_text(LIKELIHOOD_CONFIG)
    done = run_opencompass(tmp_path, "config.py", "--debug", COMPASS_DATA_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert {line["mode"] for line in table(tmp_path)} == {"ppl", "ll"}
    engine = Engine(mc_num=4)
    row = predictions_of(tmp_path, "base", "ARC-c")[0]
    labels = {label: found for label, found in row.items() if label.startswith("label: ")}
    context = os.path.commonprefix([found["prompt"] for found in labels.values()]).rsplit("\n", 1)[
        0
    ]
    for found in labels.values():
        pair = engine.encode_pair(context, found["prompt"][len(context) :])
        ((_, value),) = engine.log_likelihood([pair])
        assert found["PPL"] == pytest.approx(
            -value.value / len(pair[1]), abs=token_error(engine.model)
        )
    assert row["prediction"] == min(labels, key=lambda label: labels[label]["PPL"]).removeprefix(
        "label: "
    )
    row = predictions_of(tmp_path, "chat", "winogrande")[0]
    ((_, value),) = engine.log_likelihood(
        [engine.encode_pair("Ann beat Bo because Bo", " was faster.")]
    )
    bound = likelihood_error(engine.model, len(" was faster."))
    assert row["label: 2"]["Loglikelihood"] == pytest.approx(value.value, abs=bound)
