"""OpenCompass: the methods that stock code calls on a model, and the inferencers that
no masked-diffusion model can serve.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("opencompass")

from datasets import Dataset
from mmengine.config import ConfigDict
from opencompass.datasets import HumanEvalEvaluator, MATHEvaluator
from opencompass.datasets.base import BaseDataset
from opencompass.models.base import BaseModel
from opencompass.openicl import icl_inferencer as stock
from opencompass.openicl.icl_evaluator import AccEvaluator
from opencompass.openicl.icl_inferencer.icl_gen_inferencer import GLMChoiceInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever
from opencompass.tasks.openicl_infer import OpenICLInferTask
from tokenizers.processors import TemplateProcessing

from llada_plugins.opencompass_models import LLaDA, LLaDAUPS
from tests.tolerance import likelihood_error, token_error

pytestmark = pytest.mark.floats

OPTIONS = dict(gen_length=8, steps=4, mc_num=16)
TEXTS = ("the cat sat", "on a mat, äöü and 漢字")


class Texts(BaseDataset):
    """Two texts and the parts of them (begin, end, 1) whose likelihood counts."""

    @staticmethod
    def load() -> Dataset:
        return Dataset.from_list(
            [
                {"text": TEXTS[0], "label": [[0, 3, 1], [8, 11, 1]]},
                {"text": TEXTS[1], "label": [[3, 5, 1], [4, 8, 1]]},
            ]
        )


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> LLaDA:
    return LLaDA(str(tiny_checkpoint), **OPTIONS)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> None:
    """Stock code leaves folders in the working directory, and a refused task what tells of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)


def inferred(inferencer: type, model: LLaDA, folder: Path, **options) -> dict:
    """What a stock inferencer writes about `Texts`."""
    made = inferencer(model=model, batch_size=2, output_json_filepath=str(folder), **options)
    made.inference(
        ZeroRetriever(Texts(reader_cfg=dict(input_columns=["text"], output_column=None))),
        prompt_template=PromptTemplate("{text}"),
        output_json_filepath=str(folder),
        output_json_filename="out.json",
    )
    return json.loads((folder / "out.json").read_text())


@pytest.mark.parametrize("string", [*TEXTS, "<|startoftext|>a chat<|eot_id|>", ""])
def test_decode_undoes_encode(model, string) -> None:
    ids = model.encode(string)
    assert ids.shape == (1, model.get_token_len(string)) and ids.dtype == torch.long
    assert model.decode(ids) == model.decode(ids[0]) == string


def test_decode_leaves_out_a_bos_that_encode_adds_again(model, monkeypatch) -> None:
    bos, tokenizer = model.tokenizer.bos_token, copy.deepcopy(model.tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    monkeypatch.setattr(model, "tokenizer", tokenizer)
    ids = model.encode("a cat")
    assert ids[0, 0] == tokenizer.bos_token_id and model.decode(ids) == "a cat"
    assert model.decode(ids[:, 1:]) == "a cat"


def test_inputs_are_in_step_as_they_are(model, monkeypatch) -> None:
    assert model.sync_inputs(list(TEXTS)) == list(TEXTS)
    monkeypatch.setattr(model, "sync_rank", True)
    assert model.generate_from_template(list(TEXTS), max_out_len=8) == model.generate(TEXTS, 8)


def test_a_model_moves_and_a_model_with_further_parts_is_refused(
    tiny_checkpoint, monkeypatch
) -> None:
    model = LLaDA(str(tiny_checkpoint), **OPTIONS)
    before = model.generate(["ab"], 8)
    model.to("meta")
    assert {parameter.device.type for parameter in model.engine.model.parameters()} == {"meta"}
    del model
    model = LLaDA(str(tiny_checkpoint), **OPTIONS)
    model.to("cpu")
    assert model.generate(["ab"], 8) == before
    monkeypatch.setattr(model, "method", LLaDAUPS.method)
    with pytest.raises(ValueError, match="write device='cpu' in the model's entry"):
        model.to("cpu")


def test_labelled_parts_are_scored_given_the_text_before_them(model, tmp_path) -> None:
    """The byte tokenizer's spans, written out: a letter is a token, ä and 漢 are two and
    three; parts that touch are one.
    """
    bos = [model.tokenizer.bos_token_id]
    ids = [model.engine.encode(text) for text in TEXTS]
    lead = ids[0][:1] == bos
    parts = [[(0, 3), (8, 11)], [(3, 8)]]
    pairs = [
        ((bos if not lead else []) + row[: begin + lead], row[begin + lead : end + lead])
        for row, found in zip(ids, parts)
        for begin, end in found
    ]
    values = dict(model.engine.log_likelihood(pairs))
    losses = [-values[0].value - values[1].value, -values[2].value]
    rows = inferred(stock.InferencePPLOnlyInferencer, model, tmp_path)
    assert [rows[str(number)]["token_len"] for number in range(2)] == [6, 5]
    bound = likelihood_error(model.engine.model, max(map(len, ids)))  # other batches
    assert [rows[str(number)]["ppl"] for number in range(2)] == pytest.approx(losses, abs=bound)
    assert model.get_ppl_tokenwise([TEXTS[0]], [[[0, 3, 1]]], [2 + lead])[1] == [
        1
    ]  # two of the three are given
    assert model.get_ppl_tokenwise([TEXTS[1]], [[[10, 11, 1], [18, 19, 1]]])[1] == [2 + 3]


def test_perplexity_of_whole_texts_is_a_mean_over_their_tokens(model, tmp_path) -> None:
    rows = inferred(stock.PPLOnlyInferencer, model, tmp_path)
    assert [rows[str(number)]["ppl"] for number in range(2)] == pytest.approx(
        model.get_ppl(TEXTS).tolist(), abs=token_error(model.engine.model)
    )


def test_every_method_that_stock_code_may_call_is_answered_or_refused_by_name(model) -> None:
    """No method of the base class is left to end in a NotImplementedError."""
    inherited = {
        name
        for name in vars(BaseModel)
        if callable(getattr(BaseModel, name)) and getattr(BaseModel, name) is getattr(LLaDA, name)
    }
    assert inherited - {"__class__"} == {
        "parse_template",
        "get_ppl_tokenwise_from_template",
        "generate_from_template",
        "get_token_len_from_template",
    }


REFUSED = {  # inferencer -> its own options, what the line says
    "SWCELossInferencer": (
        stock.SWCELossInferencer,
        dict(block_size=2, stride=1),
        "SWCELossInferencer needs an autoregressive model",
    ),
    "MinKPercentInferencer": (
        stock.MinKPercentInferencer,
        {},
        "MinKPercentInferencer needs an autoregressive model",
    ),
    "CLPInferencer": (
        stock.CLPInferencer,
        dict(single_token=True),
        "CLPInferencer needs an autoregressive model",
    ),
    "GLMChoiceInferencer": (
        GLMChoiceInferencer,
        dict(max_out_len=1),
        "GLMChoiceInferencer needs an autoregressive model",
    ),
    "AgentInferencer": (stock.AgentInferencer, {}, "name OpenCompass' LagentAgent"),
    "ToTInferencer": (
        stock.ToTInferencer,
        dict(max_out_len=4, n_evaluate_sample=3),
        "set n_generate_sample and n_evaluate_sample to 1",
    ),
}


def entry(inferencer: type, evaluator: type = MATHEvaluator, **options) -> ConfigDict:
    """A data set of a config file."""
    return ConfigDict(
        abbr="texts",
        type=Texts,
        reader_cfg=dict(input_columns=["text"], output_column=None),
        infer_cfg=dict(
            prompt_template=dict(type=PromptTemplate, template="{text}"),
            retriever=dict(type=ZeroRetriever),
            inferencer=dict(type=inferencer, **options),
        ),
        eval_cfg=dict(evaluator=dict(type=evaluator)),
    )


def task(data: ConfigDict, path: str, **options) -> OpenICLInferTask:
    models = [ConfigDict(type=LLaDA, abbr="m", path=path, **OPTIONS, **options)]
    return OpenICLInferTask(ConfigDict(models=models, datasets=[[data]], work_dir="."))


@pytest.mark.parametrize(("inferencer", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_needs_another_model_is_refused_before_any_weights_are_looked_for(
    inferencer, options, message
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        task(entry(inferencer, **options), "/nowhere").run()
    assert "\n" not in str(caught.value) and str(caught.value).startswith("data set texts: ")


@pytest.mark.parametrize(
    ("inferencer", "options", "message"),
    [row for name, row in REFUSED.items() if name not in ("ToTInferencer", "CLPInferencer")],
    ids=[name for name in REFUSED if name not in ("ToTInferencer", "CLPInferencer")],
)
def test_what_needs_another_model_is_refused_by_the_first_call_too(
    model, tmp_path, inferencer, options, message
) -> None:
    """Outside a task nobody says beforehand which inferencer will ask."""
    with pytest.raises(ValueError, match=message) as caught:
        inferred(inferencer, model, tmp_path, **options)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="CLPInferencer needs an autoregressive model"):
        model.get_logits(["ab"])


def test_every_stock_inferencer_is_known_here() -> None:
    """A new one must be tried, and put among those that work or those that are refused."""
    working = {
        "GenInferencer",
        "ParallelGenInferencer",
        "ChatInferencer",
        "ParallelChatInferencer",
        "ChatMLInferencer",
        "ParallelChatMLInferencer",
        "SCInferencer",
        "PPLInferencer",
        "LLInferencer",
        "PPLOnlyInferencer",
        "InferencePPLOnlyInferencer",
        "AttackInferencer",
    }
    found = {name for name in vars(stock) if name.endswith("Inferencer")} - {"BaseInferencer"}
    assert found | {"GLMChoiceInferencer"} == working | set(REFUSED)


def test_lists_go_only_to_evaluators_that_read_them(tiny_checkpoint, caplog) -> None:
    lists = dict(generation_kwargs=dict(num_return_sequences=4))
    asked = dict(inferencer=stock.GenInferencer, max_out_len=8)
    with pytest.raises(
        ValueError,
        match="data set texts: MATHEvaluator scores a list .* write n=4 in the data set's entry",
    ):
        task(entry(**asked), "/nowhere", **lists).run()
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        task(entry(evaluator=HumanEvalEvaluator, **asked), "/nowhere", **lists).run()
    with caplog.at_level(logging.WARNING), pytest.raises(FileNotFoundError, match="/nowhere"):
        task(entry(stock.SCInferencer, AccEvaluator, sc_size=5), "/nowhere").run()
    assert "AccEvaluator of OpenCompass does not vote" in caplog.text and "n=5" in caplog.text


def test_options_that_stock_inferencers_swallow_are_named(caplog) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(FileNotFoundError, match="/nowhere"):
        task(entry(stock.GenInferencer, temperature=0.7, do_sample=True), "/nowhere").run()
    assert "does not pass on its inferencer's do_sample and temperature" in caplog.text


@pytest.mark.parametrize("block_length", [8, 32])
def test_an_answer_that_no_block_divides_has_the_length_that_the_data_set_asks_for(
    tiny_checkpoint, tmp_path, block_length
) -> None:
    """max_out_len=30: 32 tokens are decoded, 30 kept."""
    model = LLaDA(
        str(tiny_checkpoint), block_length=block_length, record_stats=True, logits_eos_inf=True
    )
    rows = inferred(stock.GenInferencer, model, tmp_path, max_out_len=30)
    assert {row["prediction"]["tokens"] for row in rows.values()} == {30}


def test_a_refused_entry_is_one_line_where_it_ends_opencompass(tiny_checkpoint, capsys):
    """As with --debug, where tasks run in OpenCompass' own process."""

    def printed(error: BaseException) -> str:
        sys.excepthook(type(error), error, error.__traceback__)
        return capsys.readouterr().err

    with pytest.raises(ValueError, match="unknown option 'stepz'") as refused:
        LLaDA(str(tiny_checkpoint), stepz=3)
    assert printed(refused.value).startswith("Traceback")  # of a program of one's own
    with pytest.raises(ValueError, match="unknown option 'stepz'") as refused:
        task(entry(stock.GenInferencer), str(tiny_checkpoint), stepz=3).run()
    assert printed(refused.value) == f"error: {refused.value}\n"
    assert printed(ValueError("another")) == "ValueError: another\n"
