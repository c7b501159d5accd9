"""Likelihoods of block-causal models: the chain over blocks, each bounded given clean ones.

The oracle is written out by hand: a forward for each set of masks of each block alone.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llada_plugins.diffusion.denoiser import Canvas, Denoiser, Prediction, model_denoiser
from llada_plugins.engine.engine import Engine
from llada_plugins.likelihood.estimate import log_likelihood
from llada_plugins.likelihood.estimators import Masks, enumerated
from llada_plugins.likelihood.requests import requests
from llada_plugins.methods.router import Router, RouterConfig, save_router
from llada_plugins.models.families import FAMILIES
from llada_plugins.models.fingerprint import backbone_fingerprint
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.loading import load_model
from llada_plugins.models.special_tokens import SpecialTokens
from tests.family_checkpoints import with_tokenizer, write_checkpoint
from tests.tolerance import likelihood_error, token_error

pytestmark = pytest.mark.floats

MASK = 39  # of the random model
PAIRS = [
    ([1, 2, 3], [4, 5, 6, 7, 8, 9, 10]),  # fills the prompt's block, a whole one, a rest
    ([8], [9, 10]),
    ([], [11, 12, 13, 14, 15]),
    ([1, 2, 3, 4], [7, 8, 9, 10]),  # one block exactly, after one exactly
    ([20, 21, 22, 23, 24, 25], [26]),
]


@pytest.fixture(scope="module")
def model(make_model) -> LLaDA:
    return make_model(attention="block_causal", block_length=4)


def naive_logits(model: LLaDA, row: list[int], width: int) -> Tensor:
    """Logits (L, V) of a row in which each token sees its block and those before it."""
    sees = [[j // width <= i // width for j in range(len(row))] for i in range(len(row))]
    return model(torch.tensor([row]), torch.tensor([sees]))[0]


def naive_bound(
    model: LLaDA,
    prompt: list[int],
    answer: list[int],
    width: int,
    scale: float = 0.0,
    shift: bool = False,
    mask: int = MASK,
) -> float:
    """The chain over blocks of E_k E_{|S| = k} (n / k) sum of log p of S, by all subsets."""
    text, total = prompt + answer, 0.0
    for begin in range(0, len(text), width):
        end = min(begin + width, len(text))
        places = [place for place in range(begin, end) if place >= len(prompt)]
        for k in range(1, len(places) + 1):
            subsets = list(itertools.combinations(places, k))
            for subset in subsets:
                row = [mask if place in subset else text[place] for place in range(end)]
                logits = naive_logits(model, row, width)
                if scale:
                    blank = naive_logits(model, [mask] * len(prompt) + row[len(prompt) :], width)
                    logits = blank + (scale + 1) * (logits - blank)
                log_p = logits.log_softmax(-1)
                of = [float(log_p[place - shift, text[place]]) for place in subset]
                total += sum(of) / k / len(subsets)
    return total


def shapes_of(model: LLaDA, found: list[tuple[int, int]], shift: bool = False) -> Denoiser:
    """The model's denoiser, which notes the rows and columns that it is given."""
    plain = model_denoiser(model, shift=shift)

    def denoise(canvas: Canvas, window: slice) -> Prediction:
        found.append(tuple(canvas.tokens.shape))
        return plain(canvas, window)

    return denoise


@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
@pytest.mark.parametrize("width", [2, 3, 4])
def test_blocks_of_up_to_four_tokens_are_enumerated_exactly(model, width, cfg_scale):
    values = log_likelihood(model, PAIRS, mc_num=15, block_length=width, cfg_scale=cfg_scale)
    for (prompt, answer), value in zip(PAIRS, values):
        expected = naive_bound(model, prompt, answer, width, cfg_scale)
        bound = likelihood_error(model, len(answer), cfg_scale)
        assert value.value == pytest.approx(expected, abs=bound)
        assert value.stderr == 0


def test_the_checkpoints_own_block_length_is_the_default(model):
    assert log_likelihood(model, PAIRS, mc_num=15) == log_likelihood(
        model, PAIRS, mc_num=15, block_length=4
    )


@pytest.mark.parametrize("estimator", ["count", "chain", "exact"])
def test_blocks_of_one_token_are_the_autoregressive_chain_in_one_row(model, estimator):
    found: list[tuple[int, int]] = []
    values = log_likelihood(
        model,
        PAIRS[:1],
        estimator=estimator,
        block_length=1,
        mc_num=1,
        denoise=shapes_of(model, found),
    )
    (prompt, answer), (value,) = PAIRS[0], values
    expected = 0.0
    for place, token in enumerate(answer):
        row = [*prompt, *answer[:place], MASK]
        expected += float(naive_logits(model, row, 1)[-1].log_softmax(-1)[token])
    assert value.value == pytest.approx(expected, abs=likelihood_error(model, len(answer)))
    assert (value.stderr, value.num_forwards) == (0, 1)
    # 7 masked tokens beside the 9 clean ones that they follow
    assert found == [(1, 16)]


def test_a_block_as_long_as_the_row_is_full_attention(model, make_model):
    full = make_model()
    for estimator in ("count", "published", "bernoulli", "chain"):
        options = dict(estimator=estimator, mc_num=16)
        values = log_likelihood(model, PAIRS, block_length=64, **options)
        for value, expected in zip(values, log_likelihood(full, PAIRS, **options)):
            bound = likelihood_error(model, 7)
            assert value[:2] == pytest.approx(expected[:2], abs=bound, nan_ok=True)
            assert value.num_forwards == expected.num_forwards


def test_the_chain_goes_from_left_to_right_and_masks_nothing_beyond_the_block(model):
    values = log_likelihood(model, PAIRS, estimator="chain")
    for (prompt, answer), value in zip(PAIRS, values):
        text, total = prompt + answer, 0.0
        for place in range(len(prompt), len(text)):
            end = min((place // 4 + 1) * 4, len(text))
            row = [*text[:place], *[MASK] * (end - place)]
            total += float(naive_logits(model, row, 4)[place].log_softmax(-1)[text[place]])
        bound = likelihood_error(model, len(answer))
        assert value.value == pytest.approx(total, abs=bound) and value.stderr == 0


def test_logits_of_the_token_before_come_from_the_clean_block_at_a_blocks_beginning(model):
    pairs = [pair for pair in PAIRS if pair[0]]
    denoise = model_denoiser(model, shift=True)
    values = log_likelihood(model, pairs, mc_num=15, denoise=denoise)
    for (prompt, answer), value in zip(pairs, values):
        expected = naive_bound(model, prompt, answer, 4, shift=True)
        assert value.value == pytest.approx(expected, abs=likelihood_error(model, len(answer)))


def test_the_last_block_may_be_filled_with_masks_as_where_it_is_decoded(model):
    values = log_likelihood(model, PAIRS, mc_num=15, fill_block=True)
    plain = log_likelihood(model, PAIRS, mc_num=15)
    for (prompt, answer), value, other in zip(PAIRS, values, plain):
        text, total = prompt + answer, 0.0
        for begin in range(0, len(text), 4):
            places = [at for at in range(begin, min(begin + 4, len(text))) if at >= len(prompt)]
            for k in range(1, len(places) + 1):
                subsets = list(itertools.combinations(places, k))
                for subset in subsets:
                    block = [
                        MASK if at in subset or at >= len(text) else text[at]
                        for at in range(begin, begin + 4)
                    ]
                    log_p = naive_logits(model, text[:begin] + block, 4).log_softmax(-1)
                    total += sum(float(log_p[at, text[at]]) for at in subset) / k / len(subsets)
        bound = likelihood_error(model, len(answer))
        assert value.value == pytest.approx(total, abs=bound)
        # whole blocks have nothing to fill
        assert (abs(value.value - other.value) <= bound) == (len(text) % 4 == 0)


def test_masks_do_not_fill_a_block_beyond_the_context(make_model):
    model = make_model(attention="block_causal", block_length=4, max_sequence_length=6)
    pair = ([1, 2, 3], [4, 5])
    (value,) = log_likelihood(model, [pair], mc_num=15, fill_block=True)
    row = [1, 2, 3, 4, MASK, MASK]
    first = naive_logits(model, [1, 2, 3, MASK], 4)[-1].log_softmax(-1)[4]
    expected = first + naive_logits(model, row, 4)[4].log_softmax(-1)[5]
    assert value.value == pytest.approx(float(expected), abs=likelihood_error(model, 2))


def test_sampled_blocks_are_unbiased_and_their_standard_error_is_honest(model):
    prompt, answer, width = [1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11], 6
    exact = naive_bound(model, prompt, answer, width)
    found = [
        log_likelihood(model, [(prompt, answer)], mc_num=8, seed=seed, block_length=width)[0]
        for seed in range(100)
    ]
    values = torch.tensor([each.value for each in found], dtype=torch.float64)
    # 4 sigma, and the seeds are fixed
    assert abs(values.mean() - exact) < 4 * values.std() / 100**0.5
    reported = (sum(each.stderr**2 for each in found) / 100) ** 0.5
    assert 0.7 * values.std() < reported < 2 * values.std()
    assert max(each.num_forwards for each in found) == 8


def test_an_exact_block_adds_to_sampled_ones_in_double_precision():
    (request,) = requests([([1, 2, 3], [4, 5])], seed=0, block_length=4)
    exact, drawn = request.parts
    value = -1 - 2**-40  # float32 has -1 next to it
    exact.begin_round(enumerated(1))
    exact.record(0, [0], torch.tensor([value], dtype=torch.float64))
    every = torch.ones(2, 1, dtype=torch.bool)
    drawn.begin_round(Masks(every, every, torch.ones(2, dtype=torch.float64)))
    assert request.value_and_error() == (value, 0.0)


def test_a_value_does_not_depend_on_the_batch_around_it(model):
    options = dict(mc_num=6, block_length=5)
    alone = [log_likelihood(model, [pair], batch_size=1, **options)[0] for pair in PAIRS]
    bound = likelihood_error(model, 7)
    for order in (PAIRS, PAIRS[::-1]):
        for size in (dict(batch_size=2), dict(batch_size=64), dict(batch_tokens=30)):
            for pair, value in zip(order, log_likelihood(model, order, **options, **size)):
                expected = alone[PAIRS.index(pair)]
                assert value[:2] == pytest.approx(expected[:2], abs=bound)
                assert value.num_forwards == expected.num_forwards


def test_masked_blocks_share_the_clean_tokens_of_their_text(model):
    found: list[tuple[int, int]] = []
    pair = (list(range(1, 31)), [31, 32])  # the prompt's last two tokens are in the answer's block
    (value,) = log_likelihood(
        model, [pair], estimator="exact", batch_size=1, denoise=shapes_of(model, found)
    )
    assert value.num_forwards == 3
    assert found == [(1, 28 + 3 * 4)]
    found.clear()
    pair = ([1, 2], list(range(3, 35)))
    log_likelihood(model, [pair], mc_num=15, batch_tokens=68, denoise=shapes_of(model, found))
    # never more noisy columns than the text has tokens, and never many fewer
    assert all(rows == 1 and columns <= 2 * 34 for rows, columns in found)
    assert len(found) <= math.ceil(15 * 36 / (34 - 3))


def test_choices_of_a_question_share_the_rows_of_their_common_block(model):
    masked: list[int] = []

    def denoise(canvas: Canvas, window: slice) -> Prediction:
        masked.append(int((canvas.tokens[:, window] == MASK).sum()))
        return model_denoiser(model)(canvas, window)

    prompt, answers = [1, 2, 3, 4, 5], ([6, 7, 8, 9], [6, 7, 8, 10], [6, 7, 11, 9])
    pairs = [(prompt, answer) for answer in answers]
    together = log_likelihood(model, pairs, mc_num=7, denoise=denoise, batch_size=8)
    # the common block: all 7 masks of the first two (12 tokens), of the third those 3 that show
    # its own token (4); then the last token, after the common tokens and after the third's
    assert sum(masked) == 12 + 4 + 1 + 1
    for pair, value in zip(pairs, together):
        alone = log_likelihood(model, [pair], mc_num=7)[0]
        assert value[:2] == pytest.approx(alone[:2], abs=likelihood_error(model, 4))


def test_rows_are_drawn_until_the_error_of_all_blocks_together_is_small_enough(model):
    pair = ([1, 2, 3], list(range(4, 30)))
    loose, tight = (
        log_likelihood(model, [pair], mc_num=f"auto:{target}", block_length=8)[0]
        for target in (2, 0.25)
    )
    assert loose.stderr <= 2 and tight.stderr <= 0.25
    assert loose.num_forwards <= tight.num_forwards


def naive_greedy(model: LLaDA, prompt: list[int], length: int, width: int) -> list[int]:
    """The most confident token at a time, block after block."""
    text = list(prompt)
    while len(text) < len(prompt) + length:
        end = min((len(text) // width + 1) * width, len(prompt) + length)
        row = text + [MASK] * (end - len(text))
        while MASK in row:
            log_p = naive_logits(model, row, width).log_softmax(-1)
            log_p[:, MASK] = -math.inf
            best = {at: log_p[at].max(-1) for at in range(len(row)) if row[at] == MASK}
            place = max(best, key=lambda at: float(best[at].values))
            row[place] = int(best[place].indices)
        text = row
    return text[len(prompt) :]


def test_the_greedy_flag_is_that_of_decoding_block_after_block(model):
    prompt = [1, 2, 3]
    answer = naive_greedy(model, prompt, 9, 4)
    wrong = [
        [*answer[:place], (answer[place] + 1) % 30, *answer[place + 1 :]] for place in (0, 4, 8)
    ]
    pairs = [(prompt, each) for each in (answer, *wrong)]
    found = log_likelihood(model, pairs, mc_num=15, greedy_check=True)
    assert [each.greedy for each in found] == [True, False, False, False]
    alone = log_likelihood(model, pairs[:1], mc_num=15)[0]
    # the three blocks of 1, 4 and 4 tokens at once, after 15 rows of masks
    assert found[0].num_forwards - alone.num_forwards == 4


def test_wrong_block_lengths_are_told(model, make_model):
    with pytest.raises(ValueError, match="block_length=4 is for models with block-causal attent"):
        log_likelihood(make_model(), PAIRS, block_length=4)
    with pytest.raises(ValueError, match="fill_block=True is for models with block-causal attent"):
        log_likelihood(make_model(), PAIRS, fill_block=True)
    with pytest.raises(ValueError, match="block_length must be at least 1, got 0"):
        log_likelihood(model, PAIRS, block_length=0)
    long = [([1], list(range(2, 32)))]
    with pytest.raises(ValueError, match="estimator='exact' takes .* for an answer of 15 tokens"):
        log_likelihood(model, long, estimator="exact", block_length=15)
    assert log_likelihood(model, long, estimator="exact", block_length=5)[0].stderr == 0


def test_an_answer_within_one_block_is_the_probability_of_its_token(model):
    (value,) = log_likelihood(model, [([1, 2, 3, 4, 5], [6])], mc_num=1)
    expected = naive_logits(model, [1, 2, 3, 4, 5, MASK], 4)[-1].log_softmax(-1)[6]
    assert value.value == pytest.approx(float(expected), abs=token_error(model))


FAMILIES_OF_BLOCKS = [name for name, row in FAMILIES.items() if row.attentions == ("block_causal",)]


@pytest.mark.parametrize("family", FAMILIES_OF_BLOCKS)
def test_every_familys_bound_is_enumerated_with_its_own_shift(family, tmp_path):
    model = load_model(write_checkpoint(family, tmp_path / family), device="cpu", dtype="float32")
    special = SpecialTokens(mask=60)
    pairs = [pair for pair in PAIRS[:2] if pair[0]]
    values = log_likelihood(model, pairs, mc_num=15, block_length=4, special=special)
    shift = FAMILIES[family].shift
    for (prompt, answer), value in zip(pairs, values):
        expected = naive_bound(model, prompt, answer, 4, shift=shift, mask=special.mask)
        other = naive_bound(model, prompt, answer, 4, shift=not shift, mask=special.mask)
        bound = likelihood_error(model, len(answer))
        assert value.value == pytest.approx(expected, abs=bound)
        assert value.value != pytest.approx(other, abs=bound)


# ---- through the harnesses


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint that may have either attention, with the byte tokenizer; for reading only."""
    return with_tokenizer("a2d_qwen3", tmp_path_factory.mktemp("a2d") / "checkpoint")


OPTIONS = dict(attention="block_causal", block_length=4, mc_num=15, device="cpu")
TEXTS = [("the cat", " sat on"), ("a", " dog")]


def expected_of(checkpoint: Path, pairs: list[tuple[list[int], list[int]]]) -> Any:
    """What `log_likelihood` makes of them, up to rounding."""
    model = load_model(checkpoint, device="cpu", dtype="float32", attention="block_causal")
    values = log_likelihood(model, pairs, mc_num=15, block_length=4)
    others = log_likelihood(load_model(checkpoint, device="cpu", dtype="float32"), pairs, mc_num=15)
    bound = likelihood_error(model, max(len(answer) for _, answer in pairs))
    assert all(abs(one.value - other.value) > bound for one, other in zip(values, others))
    return pytest.approx([each.value for each in values], abs=bound)


def test_lm_evals_requests_are_scored_block_by_block(checkpoint):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from llada_plugins import lmeval_models

    model = lmeval_models.LLaDA(pretrained=str(checkpoint), greedy_check=True, **OPTIONS)
    pairs = [model.engine.encode_pair(*text) for text in TEXTS]
    requests = [Instance("loglikelihood", {}, text, number) for number, text in enumerate(TEXTS)]
    values, greedy = zip(*model.loglikelihood(requests, disable_tqdm=True))
    assert list(values) == expected_of(checkpoint, pairs) and greedy == (False, False)
    text = "the cat sat on the mat"
    rolling = Instance("loglikelihood_rolling", {}, (text,), 0)
    whole = model.loglikelihood_rolling([rolling], disable_tqdm=True)
    pair = ([model.prefix_token_id], model.engine.encode(text))
    assert whole == expected_of(checkpoint, [pair])


def test_opencompass_scores_block_by_block(checkpoint):
    pytest.importorskip("opencompass")
    from llada_plugins import opencompass_models

    model = opencompass_models.LLaDA(str(checkpoint), **OPTIONS)
    pairs = [model.engine.encode_pair(*text) for text in TEXTS]
    whole = [context + ending for context, ending in TEXTS]
    found = model.get_loglikelihood(whole, [ending for _, ending in TEXTS])
    assert found.tolist() == expected_of(checkpoint, pairs)
    pair = model._whole(whole[0])
    found = -model.get_ppl(whole[:1]) * len(pair[1])
    assert found.tolist() == expected_of(checkpoint, [pair])


def test_a_router_is_refused_before_a_forward(checkpoint, tmp_path):
    model = load_model(checkpoint, device="cpu")
    torch.manual_seed(0)
    router = Router(RouterConfig(d_model=model.config.d_model, heads=2))
    save_router(router, tmp_path / "router", backbone_fingerprint(model))
    options = dict(pretrained=str(checkpoint), router=str(tmp_path / "router"), device="cpu")
    full = Engine("llada_ala", mc_num=1, **options)
    assert [each.value < 0 for _, each in full.log_likelihood([([65, 66], [67])])] == [True]
    engine = Engine("llada_ala", attention="block_causal", **options)
    with pytest.raises(ValueError, match="holds several masked copies of an answer, .*: use llada"):
        list(engine.log_likelihood([([65, 66], [67])]))
