"""OpenCompass: every way in which stock templates and inferencers hand over a prompt,
beside stock code's own rendering of it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("opencompass")

from datasets import Dataset, DatasetDict
from opencompass.datasets.base import BaseDataset
from opencompass.models.base import LMTemplateParser
from opencompass.models.base_api import APITemplateParser
from opencompass.models.huggingface_above_v4_33 import _convert_chat_messages
from opencompass.openicl import icl_inferencer as stock
from opencompass.openicl.icl_inferencer.icl_chat_inferencer import (
    LMTemplateParser as StockChatParser,
)
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_raw_prompt_template import RawPromptTemplate
from opencompass.openicl.icl_retriever import FixKRetriever, ZeroRetriever
from opencompass.utils.prompt import PromptList

from llada_plugins.harness.opencompass_templates import TemplateParser
from llada_plugins.opencompass_models import LLaDA

HUMAN = dict(role="HUMAN", begin="<h>", end="</h>")
BOT = dict(role="BOT", begin="<b>", end="</b>", generate=True)
META = dict(round=[HUMAN, BOT], reserved_roles=[dict(role="SYSTEM", begin="<s>", end="</s>")])
ROUNDS = [dict(role="HUMAN", prompt="{question}"), dict(role="BOT", prompt="{answer}")]
SYSTEM = dict(role="SYSTEM", fallback_role="HUMAN", prompt="Be kind.")


class Questions(BaseDataset):
    """Two questions; columns of text, and the same as a chat."""

    @staticmethod
    def load() -> DatasetDict:
        rows = [
            {
                "question": question,
                "answer": answer,
                "history": [
                    {"role": "user", "content": "Hello."},
                    {"role": "assistant", "content": "Hi."},
                ],
                "dialogue": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer},
                ],
            }
            for question, answer in (("Count to two.", "1 2"), ("Name a fruit.", "pear"))
        ]
        return DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows))


def prompt(template: object, ice: object = None) -> object:
    """The first test question as stock retrievers hand it to inferencers, with the
    second question as example where `ice` is given.
    """
    data = Questions(reader_cfg=dict(input_columns=["question"], output_column="answer"))
    retriever = FixKRetriever(data, fix_id_list=[1]) if ice else ZeroRetriever(data)
    example = retriever.generate_ice([1], ice_template=ice) if ice else ""
    return retriever.generate_prompt_for_generate_task(
        0, example, ice_template=ice, prompt_template=template
    )


ICE = PromptTemplate(dict(round=ROUNDS))
KINDS = {  # all shapes of templates in OpenCompass' own data set configs
    "string": prompt(PromptTemplate("Q: {question}\nA: {answer}")),
    "string with examples": prompt(
        PromptTemplate("</E>Q: {question}", ice_token="</E>"),
        PromptTemplate("Q: {question}\nA: {answer}\n"),
    ),
    "question": prompt(PromptTemplate(dict(round=ROUNDS[:1]))),
    "rounds": prompt(PromptTemplate(dict(round=ROUNDS))),
    "several rounds": prompt(
        PromptTemplate(
            dict(
                round=[
                    ROUNDS[0],
                    dict(role="BOT", prompt="one"),
                    dict(role="HUMAN", prompt="Go on."),
                ]
            )
        )
    ),
    "two questions in a row": prompt(
        PromptTemplate(dict(round=[ROUNDS[0], dict(role="HUMAN", prompt="Go on.")]))
    ),
    "start of the answer": prompt(
        PromptTemplate(dict(round=[ROUNDS[0], dict(role="BOT", prompt="The answer is")]))
    ),
    "system": prompt(PromptTemplate(dict(begin=[SYSTEM], round=ROUNDS))),
    "system, one": prompt(PromptTemplate(dict(begin=SYSTEM, round=ROUNDS))),
    "system, no fallback": prompt(
        PromptTemplate(dict(begin=[dict(role="SYSTEM", prompt="Be kind.")], round=ROUNDS))
    ),
    "text and system": prompt(
        PromptTemplate(dict(begin=["</E>", SYSTEM], round=ROUNDS), ice_token="</E>"), ICE
    ),
    "string for a label": prompt(PromptTemplate({"A": "{question} A", "B": "{question} B"})),
    "examples": prompt(
        PromptTemplate(dict(begin=[SYSTEM, "</E>"], round=ROUNDS), ice_token="</E>"), ICE
    ),
    "string at the beginning": prompt(
        PromptTemplate(dict(begin="</E>", round=ROUNDS), ice_token="</E>"), ICE
    ),
    "no examples": prompt(PromptTemplate(dict(begin=["</E>"], round=ROUNDS), ice_token="</E>")),
    "of several labels": prompt(PromptTemplate({"A": dict(round=ROUNDS), "B": dict(round=ROUNDS)})),
}
RAW = [
    {"role": "system", "content": "Be kind."},
    {"expand_column": "history"},
    {"role": "user", "content": "{question}"},
]
CHATS = {  # what RawPromptTemplate and ChatInferencer hand over
    "raw": prompt(RawPromptTemplate(RAW)),
    "raw with examples": prompt(
        RawPromptTemplate(["</E>", RAW[2]]),
        RawPromptTemplate([RAW[2], {"role": "assistant", "content": "{answer}"}]),
    ),
    "two questions in a row": [RAW[2], {"role": "user", "content": "Go on."}],
    "begins with an answer": [
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Count to two."},
    ],
    "role without marks": [{"role": "tool", "content": "3"}, {"role": "user", "content": "And?"}],
}


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path):
    return LLaDA(str(tiny_checkpoint), tokenizer_only=True).tokenizer


@pytest.mark.parametrize("meta", [None, META], ids=["plain", "meta_template"])
@pytest.mark.parametrize("template", KINDS.values(), ids=KINDS)
def test_prompt_templates_are_rendered_as_stock_base_models_do(tokenizer, template, meta) -> None:
    ours, theirs = TemplateParser(tokenizer, chat=False, meta_template=meta), LMTemplateParser(meta)
    for mode in ("gen", "ppl"):
        assert ours.parse_template(template, mode) == theirs.parse_template(template, mode)
        assert ours.parse_template((template, template), mode) == theirs.parse_template(
            (template, template), mode
        )


@pytest.mark.parametrize("template", KINDS.values(), ids=KINDS)
def test_prompt_templates_become_the_chat_that_stock_chat_models_make(tokenizer, template) -> None:
    """Stock chat models turn system messages into the user's; ours stay what they are."""
    roles = [
        dict(role="HUMAN", api_role="HUMAN"),
        dict(role="SYSTEM", api_role="SYSTEM"),
        dict(role="BOT", api_role="BOT", generate=True),
    ]
    (messages,) = _convert_chat_messages(
        [APITemplateParser(dict(round=roles)).parse_template(template, "gen")]
    )
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert TemplateParser(tokenizer, chat=True).parse_template(template, "gen") == expected


@pytest.mark.parametrize(
    "meta",
    [None, META, dict(META, begin="<begin>")],
    ids=["plain", "meta_template", "meta_template with a beginning"],
)
@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
def test_chats_are_rendered_as_stock_chat_inferencer_does(tokenizer, chat, meta) -> None:
    """But for what meta_template puts first, which ChatInferencer leaves out."""
    ours = TemplateParser(tokenizer, chat=False, meta_template=meta)
    expected = (meta or {}).get("begin", "") + StockChatParser(meta).parse_template(chat)
    assert ours.parse_template(chat, "gen") == expected
    assert (
        ours.parse_template([chat, chat], "gen")
        == ours.parse_template((chat, chat), "gen")
        == [expected, expected]
    )
    as_prompts = PromptList(
        dict(role=turn["role"], prompt=turn["content"]) for turn in chat
    )  # ChatInferencer's form for APIs
    assert ours.parse_template([as_prompts], "gen") == [expected]


def test_likelihoods_split_a_chat_where_the_answer_begins(tokenizer) -> None:
    chat = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    assert TemplateParser(tokenizer, chat=False, meta_template=META).split(chat) == (
        "<h>Q</h><b>",
        "A</b>",
    )
    assert TemplateParser(tokenizer, chat=False).split(chat) == ("Q", "\nA")


def test_a_message_that_is_no_text_is_refused_in_one_line(tokenizer) -> None:
    pictures = [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]
    with pytest.raises(ValueError, match="content of a message must be text, got list") as caught:
        TemplateParser(tokenizer, chat=False).parse_template([pictures], "gen")
    assert "\n" not in str(caught.value)


class Listening(LLaDA):
    """Notes the prompts and answers "pear", without weights."""

    def __init__(self, folder: Path, **options) -> None:
        super().__init__(str(folder), tokenizer_only=True, **options)
        self.seen: list[str] = []

    def generate(self, inputs, max_out_len, stopping_criteria=(), min_out_len=None):
        self.seen += inputs
        return ["pear"] * len(inputs)


USER = "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
HEAD = "<|start_header_id|>assistant<|end_header_id|>\n\n"
FRUIT = [
    {"role": "user", "content": "Name a fruit."},
    {"role": "assistant", "content": "apple"},
    {"role": "user", "content": "And another."},
    {"role": "assistant", "content": "plum"},
]
WAYS = {  # options of the model -> first and second question with the first answer {}
    "plain": ({}, "Name a fruit.", "Name a fruit.\n{}\nAnd another."),
    "meta_template": (
        dict(meta_template=META),
        "<h>Name a fruit.</h><b>",
        "<h>Name a fruit.</h><b>{}</b><h>And another.</h><b>",
    ),
    "chat": (
        dict(chat=True),
        "<|startoftext|>" + USER.format("Name a fruit.") + HEAD,
        "<|startoftext|>"
        + USER.format("Name a fruit.")
        + HEAD
        + "{}<|eot_id|>"
        + USER.format("And another.")
        + HEAD,
    ),
}


class Dialogues(BaseDataset):
    """A chat of two rounds as one column of messages."""

    @staticmethod
    def load() -> Dataset:
        return Dataset.from_list([{"dialogue": FRUIT, "answer": "plum"}])


@pytest.mark.parametrize(("options", "first", "second"), WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(
    ("mode", "earlier"), [("last", "apple"), ("every", "pear"), ("every_with_gt", "apple")]
)
@pytest.mark.parametrize("inferencer", [stock.ChatInferencer, stock.ParallelChatInferencer])
def test_the_model_sees_the_whole_dialogue_in_every_mode_of_stock_chat_inferencers(
    tiny_checkpoint, tmp_path, options, first, second, mode, earlier, inferencer
) -> None:
    model = Listening(tiny_checkpoint, **options)
    data = Dialogues(reader_cfg=dict(input_columns=["dialogue"], output_column="answer"))
    made = inferencer(model=model, infer_mode=mode, output_json_filepath=str(tmp_path))
    made.inference(
        ZeroRetriever(data), output_json_filepath=str(tmp_path), output_json_filename="chat.json"
    )
    assert model.seen == ([] if mode == "last" else [first]) + [second.format(earlier)]


@pytest.mark.parametrize(("options", "first", "second"), WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("inferencer", [stock.GenInferencer, stock.ParallelGenInferencer])
def test_the_model_fills_a_dialogue_turn_by_turn_in_stock_gen_inferencers(
    tiny_checkpoint, tmp_path, options, first, second, inferencer
) -> None:
    model = Listening(tiny_checkpoint, **options)
    turns = [
        dict(turn, content="" if turn["role"] == "assistant" else turn["content"]) for turn in FRUIT
    ]
    data = Dialogues(reader_cfg=dict(input_columns=["dialogue"], output_column="answer"))
    made = inferencer(
        model=model, max_out_len=8, multiround=True, output_json_filepath=str(tmp_path)
    )
    made.inference(
        ZeroRetriever(data),
        prompt_template=RawPromptTemplate(turns),
        output_json_filepath=str(tmp_path),
        output_json_filename="m.json",
    )
    assert model.seen == [first, second.format("pear")]
    assert json.loads((tmp_path / "m.json").read_text())["0"]["prediction"] == ["pear", "pear"]


@pytest.mark.parametrize("options", [options for options, _, _ in WAYS.values()], ids=WAYS)
@pytest.mark.parametrize("inferencer", [stock.ChatInferencer, stock.ParallelChatInferencer])
def test_a_question_reads_the_same_from_chat_and_gen_inferencers_of_one_model(
    tiny_checkpoint, tmp_path, options, inferencer
) -> None:
    """Also after a ChatInferencer, which gives stock models another parser for good."""
    model = Listening(tiny_checkpoint, **options)
    data = Questions(reader_cfg=dict(input_columns=["question"], output_column="answer"))
    where = dict(output_json_filepath=str(tmp_path))
    asked = []
    for cls in (stock.GenInferencer, inferencer, stock.GenInferencer):
        model.seen.clear()
        made = cls(model=model, max_out_len=8, **where)
        made.inference(
            ZeroRetriever(data),
            prompt_template=PromptTemplate(dict(round=ROUNDS[:1])),
            output_json_filename="out.json",
            **where,
        )
        asked.append(sorted(model.seen))
    assert asked[0] == asked[1] == asked[2] and "Count to two." in asked[0][0]
