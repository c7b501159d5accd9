"""What callers in Python may give the public functions, and what is refused in one line."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from llada_plugins import Engine, SamplerConfig, generate, guided, infill, log_likelihood


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
