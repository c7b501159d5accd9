"""Text in, text out: batching never shows, stop strings and end tokens cut where they
should, every mistake is told before a forward.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from llada_plugins.diffusion.denoiser import Canvas, Denoiser, Prediction
from llada_plugins.engine.engine import Completion, Engine, Request
from llada_plugins.likelihood.estimate import log_likelihood
from llada_plugins.models.loading import save_model
from llada_plugins.sampling.config import SamplerConfig
from tests.tolerance import likelihood_error

pytestmark = pytest.mark.floats

PROMPTS = ["one", "a longer prompt", "x", "the fourth of them", "two", "zz top"]
HEADER = "<|start_header_id|>assistant<|end_header_id|>\n\n"
# appends the assistant's header only when asked, as most templates do; LLaDA's, in the
# tiny checkpoint, always does
ASKED_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] "
    "}}<|end_header_id|>\n\n"
    "{{ message['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@pytest.fixture
def make_engine(tiny_checkpoint):
    """A function from options to an engine on the tiny checkpoint."""

    def make(folder: Path = tiny_checkpoint, **options) -> Engine:
        return Engine(pretrained=str(folder), device="cpu", **options)

    return make


@pytest.fixture
def copied(tiny_checkpoint, tmp_path) -> Path:
    """A copy of the checkpoint that a test may change."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def say(engine: Engine, *parts: str | int) -> Denoiser:
    """A denoiser that is sure of the given text and token ids, in every row; spaces after it."""
    ids: list[int] = []
    for part in parts:
        ids += (
            engine.tokenizer.encode(part, add_special_tokens=False)
            if isinstance(part, str)
            else [part]
        )
    (space,) = engine.tokenizer.encode(" ", add_special_tokens=False)

    def denoise(canvas: Canvas, window: slice) -> Prediction:
        position = torch.arange(window.start, window.stop) - canvas.answer_start[:, None]  # (B, W)
        answer = torch.tensor([*ids, *[space] * 256])[position.clamp(min=0)]
        return Prediction.from_logits(
            30.0 * torch.nn.functional.one_hot(answer, engine.model.config.vocab_size)
        )

    return denoise


def answers(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    found = dict(engine.generate(requests))
    assert sorted(found) == list(range(len(requests)))
    return [found[number] for number in range(len(requests))]


def texts(engine: Engine, requests: Sequence[Request]) -> list[str]:
    return [completion.text for completion in answers(engine, requests)]


def one(engine: Engine, *, until: tuple[str, ...] = (), prompt: str = "p", **options) -> Completion:
    return answers(engine, [Request(prompt, engine.sampler_for(options), until)])[0]


# ---- batching


@pytest.mark.parametrize("batch_tokens", [1, 30, 50, 10_000])
def test_a_batch_keeps_to_its_tokens_and_takes_as_many_rows_as_fit(make_engine, batch_tokens):
    requests = [
        Request(prompt, SamplerConfig(gen_length=12, temperature=1.0)) for prompt in PROMPTS
    ]
    expected = texts(make_engine(), requests)
    engine = make_engine(batch_size=2, batch_tokens=batch_tokens)
    seen = []
    denoise = engine.denoise

    def watched(canvas: Canvas, window: slice) -> Prediction:
        if (canvas.tokens[:, window] == engine.special.mask).all():  # the first step of a batch
            seen.append(tuple(canvas.tokens.shape))
        return denoise(canvas, window)

    engine.denoise = watched
    assert texts(engine, requests) == expected
    assert sum(rows for rows, _ in seen) == len(PROMPTS)
    assert all(rows * length <= batch_tokens or rows == 1 for rows, length in seen)
    assert all((rows + 1) * length > batch_tokens for rows, length in seen[:-1])


def test_every_request_is_decoded_with_its_own_options(make_engine):
    engine = make_engine(batch_size=8)
    samplers = [
        SamplerConfig(gen_length=4),
        SamplerConfig(gen_length=8, temperature=1.0),
        SamplerConfig(gen_length=12, block_length=4),
        SamplerConfig(gen_length=8),
    ]
    requests = [
        Request("the prompt", sampler, until) for sampler in samplers for until in ((), ("e",))
    ]
    together = answers(engine, requests)
    engine.denoise = say(engine, "abcdefghijkl")
    assert texts(engine, requests) == [
        "abcd",
        "abcd",
        "abcdefgh",
        "abcd",
        "abcdefghijkl",
        "abcd",
        "abcdefgh",
        "abcd",
    ]
    for request, completion in zip(requests, together):
        assert answers(make_engine(), [request])[0].text == completion.text


def test_repeats_of_a_prompt_differ_when_sampled_and_can_be_reproduced(make_engine):
    engine = make_engine(batch_size=2)
    sampled, greedy = (
        [Request("again", SamplerConfig(gen_length=12, temperature=temperature))] * 4
        for temperature in (1.0, 0.0)
    )
    first = texts(engine, sampled)
    assert len(set(first)) == 4 and len(set(texts(engine, greedy))) == 1
    assert texts(make_engine(batch_size=3), sampled) == first
    # the first of them is the answer to a single request
    assert texts(engine, sampled[:1]) == first[:1]
    assert (
        texts(
            make_engine(seed=5),
            [Request("again", SamplerConfig(gen_length=12, temperature=1.0, seed=5))],
        )
        != first[:1]
    )


def test_the_same_prompt_under_other_options_is_not_a_repeat(make_engine):
    engine = make_engine()
    request = Request("again", SamplerConfig(gen_length=12, temperature=1.0))
    others = [
        request._replace(sampler=SamplerConfig(gen_length=12, temperature=0.9)),
        request._replace(until=("~~",)),
    ]
    assert texts(engine, [*others, request])[-1] == texts(engine, [request])[0]


def test_counts_and_time_are_reported(make_engine):
    engine = make_engine()
    engine.denoise = say(engine, "abcdef", engine.special.eos, "xyz")
    completion = one(engine, gen_length=16, block_length=4)
    assert (completion.text, completion.num_tokens, completion.num_forwards) == (
        "abcdef",
        6,
        8,
    )
    assert completion.seconds > 0
    assert one(engine, gen_length=16, block_length=4, early_stop=False).num_forwards == 16


# ---- where an answer ends

WHOLE = "abcSTOPdeHALTfg "
UNTIL_CASES = [
    ((), WHOLE),
    (("nowhere",), WHOLE),
    (("",), WHOLE),
    (("HALT", "STOP"), "abc"),
    (("STOP", "HALT"), "abc"),
    (("HALT",), "abcSTOPde"),
    (("", "de"), "abcSTOP"),
    (("abc",), ""),
    (("STOPde", "STOP"), "abc"),
    (("T",), "abcS"),
]


@pytest.mark.parametrize("options", [{}, dict(block_length=4), dict(early_stop=False)], ids=str)
@pytest.mark.parametrize("until, expected", UNTIL_CASES, ids=str)
def test_the_earliest_stop_string_ends_the_text(make_engine, until, expected, options):
    engine = make_engine()
    engine.denoise = say(engine, "abcSTOPdeHALTfg")
    assert one(engine, until=until, gen_length=len(WHOLE), **options).text == expected


def test_a_stop_string_spares_the_blocks_after_it(make_engine):
    engine = make_engine()
    engine.denoise = say(engine, "abSTOPcdefghijkl")
    # it straddles the first two
    assert one(engine, until=("STOP",), gen_length=16, block_length=4).num_forwards == 8
    assert (
        one(engine, until=("STOP",), gen_length=16, block_length=4, early_stop=False).num_forwards
        == 16
    )


@pytest.mark.parametrize("end", ["eos", "eot"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(block_length=4),
        dict(early_stop=False),
        dict(sampling_method="semi_ar_origin", block_length=8),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "until", [(), ("after",), ("<|endoftext|>",), ("<|eot_id|>",), ("<|eot_id|>", "ke")], ids=str
)
def test_nothing_after_an_end_token_survives(make_engine, end, options, until):
    engine = make_engine()
    engine.denoise = say(
        engine, "kept", getattr(engine.special, end), "after", engine.special.eot, "more"
    )
    completion = one(engine, until=until, gen_length=16, **options)
    kept = "" if "ke" in until else "kept"
    assert (completion.text, completion.num_tokens) == (kept, len(kept))


def test_special_tokens_are_found_as_stop_strings_and_never_shown(make_engine):
    engine = make_engine()
    (header,) = engine.tokenizer.encode("<|start_header_id|>", add_special_tokens=False)
    engine.denoise = say(engine, " ab\n", header, " c  d")
    assert one(engine, gen_length=10).text == " ab\n c  d"  # white space as it was
    assert one(engine, gen_length=10, until=("<|start_header_id|>",)).text == " ab\n"
    assert one(engine, gen_length=10, until=("<|start_header_id|>", "b")).text == " a"


# ---- options

PRECEDENCE = [  # the engine's, the request's, the task's length -> gen_length, words of the warning
    ({}, {}, None, 128, None),
    ({}, {}, 32, 32, None),
    (dict(gen_length=64), {}, 64, 64, None),
    (
        dict(gen_length=64),
        {},
        32,
        64,
        "gen_length=64 overrides the task's answer length of 32 tokens",
    ),
    (
        {},
        dict(gen_length=16),
        32,
        16,
        "gen_length=16 overrides the task's answer length of 32 tokens",
    ),
    (
        dict(gen_length=64),
        dict(gen_length=16),
        None,
        16,
        "gen_length=16 of the task or of --gen_kwargs overrides gen_length=64 of",
    ),
    (dict(gen_length="64"), dict(gen_length=64.0), 64, 64, None),  # one number in three spellings
    (dict(gen_length="64.0"), {}, 64, 64, None),
]


@pytest.mark.parametrize("given, options, max_tokens, expected, warning", PRECEDENCE)
def test_gen_length_is_the_requests_then_the_engines_then_the_tasks(
    make_engine, caplog, given, options, max_tokens, expected, warning
):
    engine = make_engine(**given)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert engine.sampler_for(options, max_tokens).gen_length == expected
    assert len(caplog.messages) == (warning is not None)  # once, not three times
    assert warning is None or warning in caplog.text


def test_a_request_inherits_what_it_does_not_set(make_engine):
    engine = make_engine(temperature="0.5", gen_length=8, block_length=4)
    assert engine.sampler_for({"temperature": 1}) == SamplerConfig(
        gen_length=8, block_length=4, temperature=1.0, early_stop=True
    )
    assert engine.sampler_for({"early_stop": "false"}).early_stop is False
    with pytest.raises(
        ValueError, match=r"unknown sampler option 'treshold' \(did you mean 'threshold'\?\)"
    ):
        engine.sampler_for({"treshold": 0.9})
    with pytest.raises(ValueError, match="gen_length must be a whole number, got 'long'"):
        engine.sampler_for({"gen_length": "long"}, 32)


ENGINE_MISTAKES = [
    (dict(treshold=0.9), r"unknown option 'treshold' \(did you mean 'threshold'\?\)"),
    (dict(batchsize=2), r"unknown option 'batchsize' \(did you mean 'batch_size'\?\)"),
    (dict(batch_size=0), r"batch_size must be at least 1, got 0"),
    (dict(mc_num="none"), r"mc_num must be a whole number, got 'none'"),
    (dict(max_length=0), r"max_length must be at least 1, got 0"),
    (dict(max_length=129), r"max_length=129 exceeds the model's context of 128 tokens"),
    (dict(estimator="mean"), r"estimator must be one of 'count', .*, got 'mean'"),
    (
        dict(gen_length=12, block_length=4, steps=5),
        r"steps \(5\) must be a multiple of the number of blocks \(3 = gen_length 12 ",
    ),
    (
        dict(gen_length=16, block_length=8, sampling_method="fixed_length"),
        r"decodes one block: .* set it to gen_length \(16\), got 8",
    ),
    (dict(block_length=0), r"block_length must be at least 1, got 0"),
    (dict(steps=-4), r"steps must be at least 1, got -4"),
    (dict(mask_id=9999), r"mask token's id 9999 is outside the vocabulary"),
    (dict(dtype="int4"), r"dtype must be auto or one of float32"),
    (dict(tokenizer="./nowhere"), r"no such folder"),
]


@pytest.mark.parametrize(
    "options, message",
    ENGINE_MISTAKES,
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_wrong_option_is_told_before_weights_are_read(make_engine, copied, options, message):
    (copied / "model.safetensors").write_bytes(b"never opened")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        make_engine(copied, **options)
    assert "\n" not in str(caught.value)


def test_an_unknown_method_is_told():
    with pytest.raises(ValueError, match="method must be one of llada.*, got 'ladda'"):
        Engine("ladda")


def without_mask(folder: Path) -> None:
    """Remove every mention of the mask token from a checkpoint's files."""
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "mask_token_id": None}))
    for path in folder.glob("tokenizer*.json"):
        path.write_text(path.read_text().replace("<|mdm_mask|>", "<|other|>"))


def test_a_checkpoint_without_a_named_mask_asks_for_its_id(make_engine, copied):
    mask = make_engine().special.mask
    without_mask(copied)
    with pytest.raises(
        ValueError,
        match=r"neither config.json \(mask_token_id\) nor the tokenizer names a mask token: pass "
        r"mask_id=",
    ):
        make_engine(copied)
    requests = [Request("p", SamplerConfig(gen_length=8))]
    assert texts(make_engine(copied, mask_id=mask), requests) == texts(make_engine(), requests)


def test_a_missing_tokenizer_is_told_and_one_elsewhere_will_do(make_engine, copied, tmp_path):
    raw = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**raw, "mask_token_id": None}))
    (tmp_path / "tokenizer").mkdir()
    for path in [*copied.glob("tokenizer*.json"), copied / "special_tokens_map.json"]:
        path.rename(tmp_path / "tokenizer" / path.name)
    with pytest.raises(FileNotFoundError, match="has no tokenizer.json: pass tokenizer=FOLDER"):
        make_engine(copied)
    engine = make_engine(copied, tokenizer=str(tmp_path / "tokenizer"))
    assert engine.special == make_engine().special  # mask and EoT by name from there as well


def test_options_that_need_an_absent_token_are_told_at_once(make_engine, copied):
    raw = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**raw, "eos_token_id": None}))
    # its eos_token would do as well
    named = json.loads((copied / "tokenizer_config.json").read_text())
    (copied / "tokenizer_config.json").write_text(json.dumps({**named, "eos_token": None}))
    with pytest.raises(ValueError, match="logits_eos_inf needs an EOS token"):
        make_engine(copied, logits_eos_inf=True)
    with pytest.raises(ValueError, match="logits_eos_inf needs an EOS token"):
        next(
            make_engine(copied).generate(
                [Request("p", SamplerConfig(gen_length=4, logits_eos_inf=True))]
            )
        )


def test_wrong_prompts_are_told_before_the_first_forward(make_engine):
    engine = make_engine(overlong="error")

    def never(canvas: Canvas, window: slice) -> Prediction:
        raise AssertionError("a forward ran")

    engine.denoise = never
    for prompt, length, message in (
        ("", 8, "a prompt is empty: give at least one token of text"),
        (
            "y" * 121,
            8,
            r"a prompt of 121 tokens and gen_length \(8\) exceed the context of 128 tokens "
            r"\(prompt begins 'y{40}', ends 'y{40}'\) \(1 of 2 requests do not fit\): use fewer",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            next(
                engine.generate(
                    [
                        Request("fine", SamplerConfig(gen_length=8)),
                        Request(prompt, SamplerConfig(gen_length=length)),
                    ]
                )
            )
    assert list(engine.generate([])) == []
    assert (
        len(answers(make_engine(max_length=20), [Request("y" * 12, SamplerConfig(gen_length=8))]))
        == 1
    )
    with pytest.raises(ValueError, match="exceed the context of 20 tokens"):
        next(
            make_engine(max_length=20, overlong="error").generate(
                [Request("y" * 13, SamplerConfig(gen_length=8))]
            )
        )


# ---- text and tokens


@pytest.mark.parametrize("template", [None, ASKED_TEMPLATE], ids=["always", "asked"])
def test_a_chat_ends_with_the_assistants_header_once(make_engine, template):
    engine = make_engine()
    engine.tokenizer.chat_template = template or engine.tokenizer.chat_template
    question = {"role": "user", "content": "How many?"}
    chat = engine.render_chat([{"role": "system", "content": "Be brief."}, question])
    assert chat.endswith("How many?<|eot_id|>" + HEADER) and chat.count(HEADER) == 1
    assert chat.startswith("<|startoftext|><|start_header_id|>system")
    assert chat.count("<|startoftext|>") == 1
    turns = [question, {"role": "assistant", "content": "Two."}, question]
    assert engine.render_chat(turns).endswith("How many?<|eot_id|>" + HEADER)
    assert engine.render_chat(turns).count(HEADER) == 2


@pytest.mark.parametrize("template", [None, ASKED_TEMPLATE], ids=["always", "asked"])
@pytest.mark.parametrize("prefill", ["The answer is", "How many?", "a\n\nb"])
def test_a_prefill_ends_with_its_text_inside_the_assistants_turn(make_engine, template, prefill):
    engine = make_engine()
    engine.tokenizer.chat_template = template or engine.tokenizer.chat_template
    chat = engine.render_chat(
        [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": prefill}],
        prefill=True,
    )
    assert chat.endswith("How many?<|eot_id|>" + HEADER + prefill) and chat.count(HEADER) == 1


def test_a_tokenizer_without_a_template_is_told(make_engine):
    engine = make_engine()
    engine.tokenizer.chat_template = None
    with pytest.raises(
        ValueError,
        match="this tokenizer has no chat template: evaluate without one, or pass the tokenizer "
        "of an instruct",
    ):
        engine.render_chat([{"role": "user", "content": "x"}])


def test_bos_is_never_doubled(make_engine):
    from tokenizers.processors import TemplateProcessing

    engine = make_engine()
    bos = engine.tokenizer.bos_token_id
    assert engine.encode("hi")[0] != bos  # this tokenizer adds none
    engine.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|startoftext|> $A",
        pair="<|startoftext|> $A $B",
        special_tokens=[("<|startoftext|>", bos)],
    )
    for string in (
        "hi",
        "<|startoftext|>hi",
        engine.render_chat([{"role": "user", "content": "hi"}]),
    ):
        ids = engine.encode(string)
        assert ids[0] == bos and ids.count(bos) == 1
    context, continuation = engine.encode_pair("some context", " and more")
    assert context[0] == bos and context.count(bos) == 1 and bos not in continuation


@pytest.mark.parametrize(
    "context, continuation, head, tail",
    [
        ("Q: 2", " two", "Q: 2", " two"),
        ("Q: 2 ", "two", "Q: 2", " two"),
        ("Q:\n\n", "A", "Q:", "\n\nA"),
        ("", "two", "", "two"),
        ("  ", "two", "", "  two"),
    ],
)
def test_a_pair_splits_where_the_whole_string_does_and_spaces_go_over(
    make_engine, context, continuation, head, tail
):
    engine = make_engine()
    first, second = engine.encode_pair(context, continuation)
    assert first + second == engine.encode(context + continuation)
    assert (engine.tokenizer.decode(first), engine.tokenizer.decode(second)) == (head, tail)


# ---- likelihoods


def test_likelihoods_are_the_librarys_whatever_the_batch(make_engine):
    engine = make_engine(mc_num=20, mc_seed=3)
    pairs = [
        engine.encode_pair(context, ending)
        for context in ("the", "a longer one", "")
        for ending in (" x", " yes", " longer")
    ]
    expected = log_likelihood(engine.model, pairs, mc_num=20, seed=3)
    bound = likelihood_error(engine.model, max(len(answer) for _, answer in pairs))
    for batch_size in (1, 4, 32):
        found = dict(make_engine(mc_num=20, mc_seed=3, batch_size=batch_size).log_likelihood(pairs))
        assert sorted(found) == list(range(len(pairs)))
        for number, value in enumerate(expected):
            assert found[number].value == pytest.approx(value.value, abs=bound)
            assert found[number].num_forwards == value.num_forwards
    guided = dict(make_engine(mc_num=20, mc_seed=3, cfg_scale=1.0).log_likelihood(pairs))
    assert abs(guided[0].value - expected[0].value) > 10 * bound


def test_a_context_that_is_too_long_is_cut_from_the_left_with_one_warning(make_engine, caplog):
    engine = make_engine(max_length=12, mc_num=7)
    context, answer = list(range(1, 20)), [20, 21, 22]
    with caplog.at_level(logging.WARNING):
        values = dict(
            engine.log_likelihood(
                [(context, answer), (context[-9:], answer), (context[1:], answer)]
            )
        )
    assert [values[number].overlong for number in range(3)] == ["truncated", None, "truncated"]
    assert len({values[number]._replace(overlong=None) for number in range(3)}) == 1
    (said,) = caplog.messages
    assert said.startswith(
        "2 of 3 requests do not fit and are cut from the left (overlong=truncate); the first, "
        "number 1: a context of 19 "
    )
    # no room for any context
    assert len(list(engine.log_likelihood([(context, list(range(12)))]))) == 1


def test_an_empty_answer_is_told_with_its_own_number(make_engine):
    with pytest.raises(ValueError, match="3 is empty: there is nothing to score"):
        list(
            make_engine().log_likelihood(
                [([1, 2, 3], [4]), ([1, 2], [4]), ([1], [4]), ([1, 2, 3, 4, 5], []), ([1], [5])]
            )
        )


# ---- what was evaluated


def test_the_fingerprint_follows_what_determines_answers_and_nothing_else(
    make_engine, copied, make_model
):
    base = make_engine().fingerprint()
    assert "\n" not in base and json.loads(base)["method"] == "llada"
    assert make_engine(copied).fingerprint() == base  # the same files elsewhere
    assert make_engine(batch_size=8).fingerprint() == base
    for options in (
        dict(temperature=0.5),
        dict(gen_length=64),
        dict(seed=1),
        dict(mc_num=8),
        dict(mc_seed=1),
        dict(max_length=64),
        dict(dtype="bfloat16"),
    ):
        assert make_engine(**options).fingerprint() != base, options
    config = make_engine().model.config
    save_model(
        make_model(
            seed=1,
            vocab_size=config.vocab_size,
            max_sequence_length=128,
            mask_token_id=config.mask_token_id,
            eos_token_id=config.eos_token_id,
        ),
        copied,
    )
    assert make_engine(copied).fingerprint() != base


def test_the_fingerprint_knows_a_tokenizer_by_its_files(make_engine, copied, tmp_path):
    elsewhere = Path(shutil.copytree(copied, tmp_path / "elsewhere"))
    before = make_engine(tokenizer=str(copied)).fingerprint()
    assert make_engine(tokenizer=str(elsewhere)).fingerprint() == before
    path = copied / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": "Q"}))
    assert make_engine(tokenizer=str(copied)).fingerprint() != before


def test_the_facts_for_result_files_are_json(make_engine):
    engine = make_engine(gen_length=8, remasking="low_confidence")
    info = json.loads(json.dumps(engine.info()))
    assert info["sampler"]["gen_length"] == 8
    assert info["confidence_source"] == "tps_prob"
    assert info["model_dtype"] == "torch.float32"
    assert info["model_num_parameters"] == sum(
        parameter.numel() for parameter in engine.model.parameters()
    )


@pytest.mark.parametrize("method", ["llada", "llada_ups", "llada_ala", "llada_prm"])
def test_an_engine_beside_another_answers_as_one_of_its_own_and_reads_no_model(method, monkeypatch):
    options = dict(gen_length=8, steps=4, device="cpu")
    first = Engine("llada_ups", **options)
    request = Request("1234", first.sampler_for({"seed": 3}))
    alone = Engine(method, **options)
    (expected,) = alone.generate([request._replace(sampler=alone.sampler)])
    monkeypatch.setattr("llada_plugins.models.loading.load_model", None)
    beside = first.beside(method)
    (found,) = beside.generate([request._replace(sampler=beside.sampler)])
    assert beside.model is first.model
    assert (found[1].text, found[1].num_forwards) == (expected[1].text, expected[1].num_forwards)


def test_engines_on_one_model_read_a_process_reward_model_once():
    first = Engine("llada_prm", gen_length=8, device="cpu")
    scorer = first.prepared.judge.scorer
    other = first.beside("llada_prm", num_demasking_candidates=2, method="window")
    assert other.prepared.judge.scorer is scorer
    assert other.prepared.judge.review.style == "window"
    assert first.beside("llada_prm", prm_batch_size=3).prepared.judge.scorer is not scorer


def test_an_engine_beside_another_has_its_options_but_for_those_of_the_method():
    first = Engine("llada_ups", ups=None, gen_length=8, steps=4, overlong="error", device="cpu")
    beside = first.beside("llada_prm", num_demasking_candidates=2)
    assert (beside.sampler.gen_length, beside.config.overlong) == (8, "error")
    assert beside.method_options.num_demasking_candidates == 2
    with pytest.raises(ValueError, match="unknown option 'upz'"):
        first.beside("llada_ups", upz=1)
