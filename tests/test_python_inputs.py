"""What callers in Python may give the public functions, and what is refused in one line."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from llada_plugins import (
    Engine,
    SamplerConfig,
    SpecialTokens,
    Trace,
    generate,
    guided,
    infill,
    load_model,
    log_likelihood,
    routed,
)
from llada_plugins.engine.engine import Request


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (None, "prompts must be rows of token ids, .* got None"),
        ("ab", "prompts must be rows of token ids, .* got 'ab'"),
        (["ab"], "got 'ab': a tokenizer makes ids of text"),
        ([17, 13], "got 17"),
        (torch.tensor([17, 13]), "got 17"),
        ([[17], [17.5]], "prompt 1 holds 17.5: token ids are whole numbers"),
        (torch.tensor([[17.0]]), "prompt 0 holds 17.0: token ids are whole numbers"),
        ([[True]], "prompt 0 holds True: "),
        ([[None]], "prompt 0 holds None: "),
        ([[3, -1]], "prompt 0 holds -1, and the model's tokens are 0 to 39"),
        ([[3, 40]], "prompt 0 holds 40, and the model's tokens are 0 to 39"),
    ],
    ids=str,
)
def test_what_is_no_token_is_refused_and_never_cut_to_one(make_model, rows, told):
    model = make_model()
    with pytest.raises(ValueError, match=told):
        generate(model, rows, SamplerConfig(gen_length=4))
    with pytest.raises(ValueError, match=told.replace("prompt", "row")):
        infill(model, rows, SamplerConfig(gen_length=4))
    if not isinstance(rows, list) or not isinstance(rows[0], list):
        return
    for pairs in ([(row, [1]) for row in rows], [([1], row) for row in rows]):
        with pytest.raises(ValueError, match=told.replace("prompt", "(prompt|answer)")):
            log_likelihood(model, pairs)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ([1.5], "answer 0 holds 1.5: token ids are whole numbers"),
        ([-1], "answer 0 holds -1, and the model's tokens are 0 to 261"),
        ([262], "answer 0 holds 262, and"),
    ],
    ids=str,
)
def test_an_engine_scores_no_other_token_in_the_place_of_what_is_none(answer, told):
    engine = Engine()
    with pytest.raises(ValueError, match=told):
        list(engine.log_likelihood([([17], answer)]))


def test_rows_of_ids_may_be_lists_arrays_or_tensors_of_whole_numbers(make_model):
    model, config = make_model(), SamplerConfig(gen_length=4)
    ids = [[17, 13], [18, 5]]
    asked = [
        np.array(ids, dtype=np.int32),
        torch.tensor(ids, dtype=torch.int16),
        [torch.tensor(row) for row in ids],
        [[np.int64(token) for token in row] for row in ids],
        (tuple(row) for row in ids),
    ]
    answers = [sample.answer for sample in generate(model, ids, config)]
    for rows in asked:
        assert [sample.answer for sample in generate(model, rows, config)] == answers


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (dict(cfg_scale=float("nan")), "cfg_scale must be a number from 0 up, got nan"),
        (dict(cfg_scale=math.inf), "cfg_scale must be a number from 0 up, got inf"),
        (dict(cfg_scale=-1.0), "cfg_scale must be a number from 0 up, got -1.0"),
        (dict(seed=None), "seed must be a whole number, got None"),
        (dict(seed=1.5), "seed must be a whole number, got 1.5"),
        (dict(mc_num=True), "mc_num must be a whole number, got True"),
        (dict(batch_size=2.5), "batch_size must be a whole number, got 2.5"),
        (dict(greedy_check="no"), "greedy_check must be true or false, got 'no'"),
    ],
    ids=str,
)
def test_an_option_of_likelihoods_of_another_type_is_refused(make_model, options, told):
    with pytest.raises(ValueError, match=told):
        log_likelihood(make_model(), [([1], [2, 3])], **options)


def test_likelihoods_take_pairs_without_masks_and_numbers_of_numpy(make_model):
    model = make_model()
    with pytest.raises(ValueError, match=r"pairs must be a list of \(prompt ids, answer ids\)"):
        log_likelihood(model, [([1], [2], [3])])
    with pytest.raises(ValueError, match=r"answer 0 holds the mask token \(id 39\) at position 1"):
        log_likelihood(model, [([1], [2, 39])])
    plain = log_likelihood(model, [([1], [2, 3])], mc_num=8, seed=3)
    assert log_likelihood(model, [([1], [2, 3])], mc_num=np.int64(8), seed=np.int64(3)) == plain


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (dict(cache="duel"), "cache must be one of .*'dual'.*, got 'duel'"),
        (dict(schedule="linear"), "schedule must be one of 'llada', .* got 'linear'"),
        (dict(early_stop="x"), "early_stop must be true or false, got 'x'"),
        (dict(steps=True), "steps must be a whole number, got True"),
        (dict(gen_length=2.5), "gen_length must be a whole number, got 2.5"),
        (dict(gen_length=None), "gen_length must be a whole number, got None"),
        (dict(temperature=True), "temperature must be a number, got True"),
        (dict(threshold="high"), "threshold must be a number, got 'high'"),
        (dict(seed=None), "seed must be a whole number, got None"),
        (dict(seed=0.5), "seed must be a whole number, got 0.5"),
        (dict(top_k=float("nan"), temperature=1.0), "top_k must be a whole number, got nan"),
    ],
    ids=str,
)
def test_an_option_of_another_type_is_refused_in_python_too(options, told):
    with pytest.raises(ValueError, match=told):
        SamplerConfig(**options)


def test_options_in_python_take_numbers_of_numpy_and_torch_exactly():
    large = 2**60 + 1  # no float64
    config = SamplerConfig(
        gen_length=np.int64(8), steps=torch.tensor(4), threshold=None, seed=np.int64(large)
    )
    assert config == SamplerConfig(gen_length=8, steps=4, seed=large)
    assert type(config.gen_length) is int and config.seed == large


def test_keys_are_one_for_each_row_and_a_config_is_one(make_model):
    model = make_model()
    with pytest.raises(ValueError, match="keys must be one for each row, got 2 for 1"):
        generate(model, [[1]], SamplerConfig(gen_length=4, temperature=1.0), keys=[1, 2])
    with pytest.raises(ValueError, match="keys must be one for each row, got 1 for 2"):
        infill(model, [[1, 39], [39, 1]], keys=[1])
    with pytest.raises(ValueError, match="config must be a SamplerConfig"):
        generate(model, [[1]], {"gen_length": 4})
    for scale in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="scale must be a number from 0 up"):
            guided(lambda canvas, window: None, scale, 39)


MODEL_CALLS = {
    "generate": lambda model, **given: generate(model, [[1]], SamplerConfig(gen_length=4), **given),
    "infill": lambda model, **given: infill(model, [[1, 39]], **given),
    "log_likelihood": lambda model, **given: log_likelihood(model, [([1], [2])], **given),
}


@pytest.mark.parametrize("call", MODEL_CALLS.values(), ids=MODEL_CALLS)
@pytest.mark.parametrize(
    ("given", "told"),
    [
        (dict(special=5), r"special must be SpecialTokens\(mask=…\), got 5"),
        (dict(special=SpecialTokens(-1)), "special.mask is -1, and the model's tokens are 0 to 39"),
        (dict(special=SpecialTokens(99)), "special.mask is 99, and"),
        (dict(special=SpecialTokens(39, eos="a")), "special.eos is 'a', and"),
        (dict(special=SpecialTokens(39, more_eos=(40,))), "special.more_eos is 40, and"),
        (dict(denoise=5), "denoise must be a function, got 5"),
    ],
    ids=str,
)
def test_what_is_given_beside_rows_is_of_its_kind(make_model, call, given, told):
    with pytest.raises(ValueError, match=told):
        call(make_model(), **given)


@pytest.mark.parametrize("call", MODEL_CALLS.values(), ids=MODEL_CALLS)
@pytest.mark.parametrize("model", [None, "tiny", Engine], ids=str)
def test_what_is_no_model_is_told_what_a_model_is(call, model):
    with pytest.raises(ValueError, match=r"model must be what load_model\(\.\.\.\) returns, or an"):
        call(Engine() if model is Engine else model)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (dict(keys=5), "keys must be a list of whole numbers, one for each row, got 5"),
        (dict(keys=[1.5]), "key 0 is 1.5: keys are whole numbers, "),
        (dict(keys=["a"]), "key 0 is 'a': "),
        (dict(keys=[torch.tensor(1.5)]), r"key 0 is tensor\(1.5000\): "),
        (dict(keys=[2**70]), "key 0 is 1180591620717411303424: "),
        (dict(on_step=5), "on_step must be a function, got 5"),
        (dict(stop="x"), "stop must be a function, got 'x'"),
        (dict(review=None), "review must be a function, got None"),
        (dict(config={}), r"config must be a SamplerConfig\(\.\.\.\), got {}"),
    ],
    ids=str,
)
def test_keys_and_functions_of_generate_are_of_their_kind(make_model, given, told):
    config = SamplerConfig(gen_length=4, temperature=1.0)
    with pytest.raises(ValueError, match=told):
        generate(make_model(), [[1]], **{"config": config, **given})


@pytest.mark.parametrize("key", [np.int64(5), torch.tensor(5)], ids=repr)
def test_a_key_may_be_a_number_of_numpy_or_torch(make_model, key):
    config = SamplerConfig(gen_length=4, temperature=1.0)
    expected = generate(make_model(), [[1]], config, keys=[5])
    assert generate(make_model(), [[1]], config, keys=[key])[0].answer == expected[0].answer


@pytest.mark.parametrize("rows", [[b"ab"], [{1, 2}], [{1: 2}], b"ab", {}, {(1, 2)}], ids=str)
def test_what_has_no_order_or_is_bytes_is_no_row_of_tokens(make_model, rows):
    with pytest.raises(ValueError, match="prompts must be rows of token ids"):
        generate(make_model(), rows, SamplerConfig(gen_length=4))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (dict(estimator=[]), r"estimator must be one of .* got \[\]"),
        (dict(mc_num="auto:0.1", mc_max="x"), "mc_max must be a whole number, got 'x'"),
        (dict(mc_num="auto:0.1", mc_max=1.5), "mc_max must be a whole number, got 1.5"),
        (dict(mc_num="auto:0.1", mc_max=True), "mc_max must be a whole number, got True"),
        (dict(mc_num="auto:0.1", mc_confidence="x"), "mc_confidence must be from 0.5 to 1, got"),
        (dict(mc_num="auto:0.1", mc_confidence=True), "mc_confidence must be from .* got True"),
        (dict(estimator="published", mc_batch=True), "mc_batch must be a whole number, got True"),
        (dict(estimator="published", mc_batch=8.0), "mc_batch must be a whole number, got 8.0"),
    ],
    ids=str,
)
def test_numbers_of_rows_are_whole_and_a_confidence_is_a_number(make_model, options, told):
    with pytest.raises(ValueError, match=told):
        log_likelihood(make_model(), [([1], [2])], **options)
    assert log_likelihood(
        make_model(), [([1], [2])], mc_num="auto:0.1", mc_max=np.int64(64), mc_confidence=0.9
    )


@pytest.mark.parametrize("pairs", [[5], [None]], ids=str)
def test_what_is_no_pair_is_told_so(make_model, pairs):
    with pytest.raises(ValueError, match="pairs must be a list of"):
        log_likelihood(make_model(), pairs)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (dict(pretrained=5), "pretrained must be a checkpoint folder, a hub id, or .* got 5"),
        (dict(pretrained=True), "pretrained must be .* got True"),
        (dict(pretrained=b"x"), "pretrained must be .* got b'x'"),
        (dict(pretrained=""), "pretrained must be .* got ''"),
        (dict(peft=5), "peft must be a checkpoint folder, .* got 5"),
        (dict(revision=5), "revision must be a branch, tag or commit of a hub id, got 5"),
        (dict(revision="main"), "revision='main' has no effect on 'tiny', a model shipped in the"),
        (dict(device=None), "device must be auto, cpu, cuda or cuda:N, got None"),
        (dict(dtype=[]), r"dtype must be auto or one of .* got \[\]"),
    ],
    ids=str,
)
def test_options_of_load_model_are_of_their_kind(options, told):
    with pytest.raises(ValueError, match=told):
        load_model(**options)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(gen_length=4)


def asked_of(prompt: Any = "1", **other: Any) -> list[Request]:
    return [Request(prompt, SamplerConfig(gen_length=4))._replace(**other)]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda engine: engine.infill(None), "a text must be a string with marked spans, .* None"),
        (lambda engine: engine.infill(b"a"), "a text must be a string with marked spans, .* b'a'"),
        (lambda engine: engine.infill(["a", None]), "a piece of a text must be .* got None"),
        (lambda engine: engine.infill(["a", True]), "a piece of a text must be .* got True"),
        (lambda engine: engine.infill(["a", 1.5]), "a piece of a text must be .* got 1.5"),
        (lambda engine: engine.infill(["a", ["b"]]), r"a piece of a text must be .* got \['b'\]"),
        (lambda engine: engine.generate("abc"), "requests must be a list of Request.* got 'abc'"),
        (lambda engine: engine.generate(None), "requests must be a list of Request.* got None"),
        (lambda engine: engine.generate(["abc"]), "request 0 must be a Request.* got 'abc'"),
        (lambda engine: engine.generate([("1", None)]), "request 0 must be a Request"),
        (lambda engine: engine.generate(asked_of(sampler=None)), "request 0 must be a Request"),
        (lambda engine: engine.generate(asked_of([1])), r"prompt of request 0 .* string, got \[1"),
        (lambda engine: engine.generate(asked_of(until="ab")), "until of request 0 .* got 'ab'"),
        (lambda engine: engine.generate(asked_of(until=["a"])), "until of request 0 must be a tup"),
        (lambda engine: engine.generate(asked_of(), "x"), "batch_size must be .* got 'x'"),
        (lambda engine: engine.generate(asked_of(), 0), "batch_size must be .* got 0"),
        (lambda engine: engine.generate(asked_of(), 1.5), "batch_size must be .* got 1.5"),
        (lambda engine: engine.log_likelihood([([1], [2])], 0), "batch_size must be .* got 0"),
        (lambda engine: [engine.encode(None)], "a text must be a string, got None"),
        (lambda engine: [engine.encode(["a"])], r"a text must be a string, got \['a'\]"),
        (lambda engine: engine.encode_pair(None, "a"), "a text must be a string, got None"),
        (lambda engine: engine.encode_pair("a", None), "a text must be a string, got None"),
        (lambda engine: engine.render_chat("a"), "a chat must be a list of .* got 'a'"),
        (lambda engine: engine.render_chat(None), "a chat must be a list of .* got None"),
        (lambda engine: engine.render_chat(["a"]), "message 0 of a chat must have a role .* 'a'"),
        (
            lambda engine: engine.render_chat([{"role": "user", "content": [{"text": "a"}]}]),
            "message 0 of a chat must have a role and a content, both strings",
        ),
        (lambda engine: engine.sampler_for(None), "options must be a dict of sampler options"),
        (lambda engine: engine.watch(5), "show must be a function, got 5"),
        (lambda engine: Engine("llada", "x"), r"write Engine\('llada', pretrained='x'\)"),
        (lambda engine: Engine([]), r"method must be one of .* got \[\]"),
        (lambda engine: Trace(5), "config must be the SamplerConfig of the call, got 5"),
        (lambda engine: Trace(SamplerConfig(), 5), "rows must be a set of numbers of prompts"),
        (lambda engine: guided(None, 1.0, 3), "denoise must be a function, got None"),
        (lambda engine: guided(len, "x", 3), "cfg_scale must be a number from 0 up, got 'x'"),
        (lambda engine: guided(len, True, 3), "cfg_scale must be a number from 0 up, got True"),
        (lambda engine: guided(len, 1.0, None), "mask_id must be the id of the mask token, got N"),
        (lambda engine: routed(len, None, None, 3), "router must be a Router, got None"),
    ],
)
def test_what_an_engine_is_given_is_of_its_kind(engine, call, told):
    with pytest.raises(ValueError, match=told):
        list(call(engine))


def test_a_span_takes_a_number_of_numpy(engine):
    assert len(engine.infill(["1", np.int64(3)]).spans[0]) == 3
