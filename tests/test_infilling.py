"""Spans of a text filled in by the one decode loop: what is given stays, whatever the options."""

from __future__ import annotations

import random

import pytest
import torch

from llada_plugins.diffusion.denoiser import PADDING, Canvas, model_denoiser
from llada_plugins.diffusion.random_streams import request_key
from llada_plugins.models.folder import known_special_tokens
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.loading import load_model
from llada_plugins.models.special_tokens import SpecialTokens
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.decode import decode
from llada_plugins.sampling.generate import generate, with_options
from llada_plugins.sampling.infilling import cut, for_infilling, infill, infill_rows
from tests.test_sampler import EOS, EOT, MASK, METHOD_OPTIONS, SPECIAL, record, toy_denoiser

OTHERS = [token for token in range(16) if token not in (MASK, EOS, EOT)]
# alone they ask for a canvas that grows
INFILLS = [each for each in METHOD_OPTIONS if each.get("sampling_method") != "semi_ar_origin"]
# one of each kind is of the fast suite
FAST = [0, 22, 30, 49]


def named(options: dict) -> str:
    return ",".join(f"{name}={value}" for name, value in options.items())


every_option = pytest.mark.parametrize(
    "options",
    [
        pytest.param(each, id=named(each), marks=[] if number in FAST else [pytest.mark.slow])
        for number, each in enumerate(INFILLS)
    ],
)


def drawn_rows(seed: int, num: int = 5) -> list[list[int]]:
    """Rows with masks anywhere: at the first place, at the last, in one run or in many."""
    chance = random.Random(seed)
    rows = []
    for _ in range(num):
        length = chance.randint(3, 20)
        row = [chance.choice(OTHERS) for _ in range(length)]
        for place in chance.sample(range(length), chance.randint(1, length)):
            row[place] = MASK
        rows.append(row)
    return rows


ROWS = [
    [5, 6, MASK, MASK, MASK, 7, 8, 9, MASK, MASK, 4, 4],
    [MASK, MASK, 10, MASK],
    [12, MASK, MASK, 14, 15, 13, MASK, MASK, MASK, MASK, 9, 8, 7, 6, MASK, MASK],
    [11, 4, *[MASK] * 9],
    [5, *[MASK] * 10, 6],
]


def fill(options: dict, rows: list[list[int]], denoise=None, **given):
    config = SamplerConfig(**options)
    return infill_rows(denoise or toy_denoiser(), rows, config, SPECIAL, **given)


@every_option
@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_given_stays_and_every_mask_is_filled(options, seed):
    rows = [*ROWS, *drawn_rows(seed)]
    for row, found in zip(rows, fill(options, rows)):
        assert len(found.tokens) == len(row)
        assert [new for old, new in zip(row, found.tokens) if old != MASK] == [
            token for token in row if token != MASK
        ]
        assert MASK not in found.tokens and PADDING not in found.tokens
        assert sum(found.spans, []) == [new for old, new in zip(row, found.tokens) if old == MASK]


@every_option
def test_what_is_given_is_seen_at_every_step_and_never_changed(options):
    seen: list[tuple[Canvas, slice]] = []
    row = ROWS[2]
    fill({**options, "cfg_scale": 0.0}, [row], record(toy_denoiser(), seen))
    assert seen
    for canvas, _ in seen:
        for of_branch in canvas.tokens.tolist():
            assert len(of_branch) == len(row)
            assert all(old in (MASK, new) for old, new in zip(row, of_branch))


@every_option
def test_a_text_does_not_depend_on_the_batch_around_it(options):
    together = fill(options, ROWS)
    assert fill(options, ROWS[::-1])[::-1] == together
    assert [fill(options, [row])[0] for row in ROWS] == together
    # answers of one length share a batch, whatever is before and after them
    alike = [[*before, *ROWS[0][2:10], *after] for before, after in (([5], []), ([], [7] * 9))]
    assert fill(options, [*alike, ROWS[0]]) == [
        *(fill(options, [each])[0] for each in alike),
        together[0],
    ]


@every_option
def test_without_text_after_it_a_span_is_an_answer(options):
    prompts = [[5, 6, 7], [8], [4, 4, 9, 10, 12]]
    config = for_infilling(SamplerConfig(**options), 12)
    keys = [request_key(config.seed, prompt) for prompt in prompts]
    answers = decode(
        with_options(toy_denoiser(), config, SPECIAL), prompts, config, SPECIAL, keys=keys
    )
    found = fill(options, [[*prompt, *[MASK] * 12] for prompt in prompts], keys=keys)
    assert [each.spans for each in found] == [[each.answer] for each in answers]
    assert [each.num_forwards for each in found] == [each.num_forwards for each in answers]


def naive(row: list[int], denoise) -> list[int]:
    """LLaDA's rule by hand: of all masks, the most probable best token, one a forward."""
    first = row.index(MASK)
    row = list(row)
    while MASK in row:
        canvas = Canvas(torch.tensor([row]), torch.tensor([first]))
        logits = denoise(canvas, slice(0, len(row))).logits_at(torch.arange(len(row))[None])[0]
        probability = logits.softmax(-1)
        probability[:, MASK] = 0  # never proposed, but part of what they sum to
        best, token = probability.max(-1)
        place = max(
            (place for place, each in enumerate(row) if each == MASK), key=lambda p: best[p].item()
        )
        row[place] = int(token[place])
    return row


@pytest.mark.parametrize("seed", range(6))
def test_one_block_of_one_token_a_step_is_what_a_loop_by_hand_fills_in(seed):
    rows = drawn_rows(seed)
    found = fill({}, rows)
    assert [each.tokens for each in found] == [naive(row, toy_denoiser()) for row in rows]
    assert [each.num_forwards for each in found] == [row.count(MASK) for row in rows]


def test_a_block_without_masks_costs_no_forward():
    row = [5, MASK, MASK, *[6] * 8, MASK, 7]
    (found,) = fill({"block_length": 2}, [row])
    assert found.num_forwards == 3


@pytest.mark.parametrize(
    "options",
    [{"revise": True, "steps": 10}, {"remask_ratio": 0.5, "steps": 10}],
    ids=["revise", "remask_ratio"],
)
def test_revision_masks_again_what_was_decoded_alone(options):
    steps = []
    row = [5, MASK, MASK, *[6] * 8, MASK, MASK, 7]
    fill({"confidence_source": "random", **options}, [row], on_step=steps.append)
    remasked = torch.cat([step.remasked for step in steps]).any(0)
    masked = torch.tensor(row[1:-1]) == MASK
    assert remasked.any() and not remasked[~masked].any()


def test_few_masks_take_few_steps_of_a_revising_schedule():
    row = [5, MASK, MASK, *[6] * 8, MASK, MASK, 7]
    (found,) = fill({"gen_length": 12, "revise": True, "steps": 12}, [row])
    assert found.num_forwards == 4


def test_the_unconditional_branch_of_guidance_sees_nothing_that_was_given():
    seen: list[tuple[Canvas, slice]] = []
    row = ROWS[0]
    fill({"cfg_scale": 1.0}, [row], record(toy_denoiser(), seen))
    for canvas, _ in seen:
        blank = canvas.tokens[1].tolist()
        assert [blank[place] for place, token in enumerate(row) if token != MASK] == [MASK] * 7


def test_steps_of_another_length_keep_their_pace():
    config = SamplerConfig(gen_length=64, block_length=16, steps=32)  # 8 steps a block
    assert for_infilling(config, 20).steps_per_block == 8
    assert for_infilling(SamplerConfig(gen_length=64, steps=32), 8).steps_per_block == 8
    alone = SamplerConfig(gen_length=64, block_length=16, threshold=0.9, block_add_threshold=0.1)
    assert for_infilling(alone, 10).blocks_at_once == 1
    assert for_infilling(alone, 20).blocks_at_once == 2


@pytest.mark.parametrize(
    "options, told",
    [
        (
            {"sampling_method": "semi_ar_origin", "block_length": 4},
            "sampling_method=semi_ar_origin",
        ),
        (
            {"sampling_method": "block_causal", "block_length": 4},
            "does not follow from the text after its block: set unseen_suffix=true",
        ),
        ({"stop_at": "eos"}, "stop_at=eos ends an answer at an end token"),
        ({"stop_at": "block"}, "stop_at=block ends an answer at an end token"),
    ],
)
def test_what_needs_an_open_end_is_refused_by_name(options, told):
    with pytest.raises(ValueError, match=told):
        fill(options, ROWS)


def test_a_row_without_a_mask_is_refused():
    with pytest.raises(ValueError, match="nothing is to be filled in"):
        cut([5, 6, 7], MASK)


# ---- of a network


@pytest.fixture(scope="module")
def model():
    return load_model()


MODEL_OPTIONS = [
    {},
    {"threshold": 0.6, "block_length": 4},
    {"steps": 8, "cache": "prefix", "block_length": 4, "gen_length": 16},
    {"cache": "dual", "block_length": 4, "cache_refresh": 3},
    {"cache": "dual", "block_length": 4, "cache_vicinity": 2, "cache_delayed": True},
    {"cache": "dual", "block_length": 4, "cache_prompt_refresh": 0},
    {"cache": "prefix", "block_length": 4, "threshold": 0.6, "block_add_threshold": 0.1},
    {
        "cache": "prefix",
        "block_length": 4,
        "threshold": 0.6,
        "block_add_threshold": 0.1,
        "cache_delay_iter": 1,
    },
    {"cfg_scale": 0.5, "cache": "dual", "block_length": 4},
    {"temperature": 0.7, "revise": True, "steps": 16, "gen_length": 16},
]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(each, id=named(each), marks=[] if number in (1, 3) else [pytest.mark.slow])
        for number, each in enumerate(MODEL_OPTIONS)
    ],
)
def test_rows_of_a_network_depend_on_no_other_and_keep_what_is_given(model, options):
    mask = known_special_tokens(model).mask
    chance = random.Random(3)
    rows = []
    for before, after in ((3, 9), (1, 0), (8, 2)):
        row = [chance.randrange(10) for _ in range(before + 10 + after)]
        for place in (0, 1, 4, 5, 6, 9):
            row[before + place] = mask
        rows.append(row)
    config = SamplerConfig(**options)
    together = infill(model, rows, config)
    assert [infill(model, [row], config)[0] for row in rows] == together
    for row, found in zip(rows, together):
        assert all(old in (mask, new) for old, new in zip(row, found.tokens))
        assert mask not in found.tokens


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_cache_that_is_refreshed_at_every_step_fills_in_what_none_does(model, cache):
    mask = known_special_tokens(model).mask
    row = [1, 2, mask, mask, 5, mask, mask, mask, 3, 4, mask, 6, 7]
    plain = infill(model, [row], SamplerConfig(block_length=4))
    refreshed = SamplerConfig(block_length=4, cache=cache, cache_refresh=1)
    assert infill(model, [row], refreshed) == plain


def test_without_text_after_it_a_span_of_a_network_is_its_answer(model):
    mask = known_special_tokens(model).mask
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    config = SamplerConfig(gen_length=8, block_length=4)
    keys = [3, 4]
    answers = generate(model, prompts, config, keys=keys)
    found = infill(model, [[*each, *[mask] * 8] for each in prompts], config, keys=keys)
    assert [each.spans for each in found] == [[each.answer] for each in answers]


def test_a_text_longer_than_the_context_is_refused(model):
    row = [1, *[known_special_tokens(model).mask] * model.config.max_sequence_length]
    with pytest.raises(ValueError, match="exceeds the model's context"):
        infill(model, [row])


# ---- of a network whose tokens see their own block and earlier ones alone

CAUSAL_MASK = 39  # of make_model's
WIDTH = 4
CAUSAL: list[dict] = [
    {},
    {"threshold": 0.3, "strict": False},
    {"block_steps": 2},
    {"threshold": 0.3, "blocks_from": "answer"},
    {"shift": True},
]


@pytest.fixture(scope="module")
def causal(make_model) -> LLaDA:
    model = make_model(attention="block_causal", block_length=WIDTH)
    model.transformer["ff_out"].weight.data *= 5  # it is often rather sure
    return model


def causal_rows(seed: int, num: int = 6) -> list[list[int]]:
    """Rows of tokens that are no special ones, with masks anywhere."""
    chance = random.Random(seed)
    rows = []
    for _ in range(num):
        row = [chance.randrange(38) for _ in range(chance.randint(3, 22))]
        for place in chance.sample(range(len(row)), chance.randint(1, min(9, len(row)))):
            row[place] = CAUSAL_MASK
        rows.append(row)
    return rows


def fill_causal(model: LLaDA, rows: list[list[int]], shift: bool = False, **options):
    config = SamplerConfig(unseen_suffix=True, **options)
    return infill(model, rows, config, denoise=model_denoiser(model, shift=shift))


def naive_causal(model: LLaDA, row: list[int], options: dict) -> tuple[list[int], int]:
    """Block after block by forwards that end with it, and how many there were."""
    row, forwards = list(row), 0
    first = row.index(CAUSAL_MASK) % WIDTH if options.get("blocks_from") == "answer" else 0
    block = (torch.arange(len(row)) - first).div(WIDTH, rounding_mode="floor")
    for number in block.unique().tolist():
        columns = [column for column in range(len(row)) if block[column] == number]
        seen = row[: columns[-1] + 1]
        visible = (block[None, : len(seen)] <= block[: len(seen), None])[None]
        masks = [column for column in columns if row[column] == CAUSAL_MASK]
        # half of the block's tokens a step, of those that are masked: the larger share first
        shares = [-(-len(masks) // 2), len(masks) // 2] if "block_steps" in options else None
        step = 0
        while masks:
            with torch.no_grad():
                probability = model(torch.tensor([seen]), visible)[0].softmax(-1)
            forwards += 1
            probability[:, CAUSAL_MASK] = 0
            if options.get("shift"):
                probability = probability.roll(1, 0)
            best, token = probability.max(-1)
            chosen = sorted(masks, key=lambda column: -best[column].item())
            least = shares[step] if shares else 1
            above = [c for c in chosen if best[c] >= options.get("threshold", 2.0)]
            for column in above if len(above) >= least else chosen[:least]:
                row[column] = seen[column] = int(token[column])
            masks = [column for column in columns if row[column] == CAUSAL_MASK]
            step += 1
    return row, forwards


@pytest.mark.parametrize("options", CAUSAL, ids=named)
@pytest.mark.parametrize("seed", [0, 1])
def test_spans_of_causal_blocks_are_what_a_loop_by_hand_fills_in(causal, options, seed):
    rows = [[1, *row] for row in causal_rows(seed)]
    found = fill_causal(causal, rows, **options)
    expected = [naive_causal(causal, row, options) for row in rows]
    assert [(each.tokens, each.num_forwards) for each in found] == expected
    assert fill_causal(causal, rows, cache="none", **options) == found
    assert [fill_causal(causal, [row], **options)[0] for row in rows] == found


CAUSAL_RULES: list[dict] = [
    {"cfg_scale": 0.7},
    {"temperature": 0.9},
    {"revise": True, "block_steps": 2},
    {"threshold": 0.3, "edit_threshold": 0.5},
    {"threshold": 0.3, "revise_below": 0.2},
    {"threshold": 0.3, "sub_block_length": 2},
    {"threshold": 0.3, "max_dependence": 0.5},
    {"schedule": "dream"},
    {"blocks_from": "answer", "cfg_scale": 0.5, "shift": True},
    {"threshold": 0.3, "draft_rows": 3, "cache": "none"},
]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(each, id=named(each), marks=[] if number == 3 else [pytest.mark.slow])
        for number, each in enumerate(CAUSAL_RULES)
    ],
)
def test_rows_of_causal_blocks_depend_on_no_other_and_keep_what_is_given(causal, options):
    rows = [[1, *row] for seed in (2, 3) for row in causal_rows(seed)]
    together = fill_causal(causal, rows, **options)
    assert [fill_causal(causal, [row], **options)[0] for row in rows] == together
    assert fill_causal(causal, rows, **{**options, "cache": "none"}) == together
    for row, found in zip(rows, together):
        assert len(found.tokens) == len(row) and CAUSAL_MASK not in found.tokens
        assert all(old in (CAUSAL_MASK, new) for old, new in zip(row, found.tokens))


def test_text_after_its_block_changes_nothing_of_a_span_and_text_within_does(causal):
    mask = CAUSAL_MASK
    row = [1, 2, 3, 4, 5, mask, mask, 6, 7, 8, 9, 10, 11]
    (found,) = fill_causal(causal, [row])
    others = [row[:8] + [each] * 5 for each in range(12, 36)]
    assert {str(each.spans) for each in fill_causal(causal, others)} == {str(found.spans)}
    others = [row[:7] + [each] + row[8:] for each in range(12, 36)]
    assert len({str(each.spans) for each in fill_causal(causal, others)}) > 1


def test_a_text_of_causal_blocks_fits_its_context_in_whole_blocks(make_model):
    model = make_model(attention="block_causal", block_length=WIDTH, max_sequence_length=22)
    mask = CAUSAL_MASK
    for options in ({}, {"blocks_from": "answer"}):
        (found,) = fill_causal(model, [[*range(15), mask, mask, *range(9)]], **options)
        assert found.tokens[:15] == list(range(15)) and mask not in found.tokens
    with pytest.raises(ValueError, match="a text of 22 tokens.* as far as the last one's block"):
        fill_causal(model, [[*range(19), mask, mask, 1]])


def test_without_text_after_it_a_span_of_causal_blocks_is_an_answer(causal):
    prompts, keys = [[1, 2, 3], [4, 5, 6, 7, 8]], [3, 4]
    special = SpecialTokens(CAUSAL_MASK, None)  # nothing ends an answer
    config = SamplerConfig(gen_length=7, last_block="rest", temperature=0.7)
    answers = generate(causal, prompts, config, keys=keys, special=special)
    rows = [[*each, *[CAUSAL_MASK] * 7] for each in prompts]
    asked = SamplerConfig(unseen_suffix=True, temperature=0.7)
    found = infill(causal, rows, asked, keys=keys, special=special)
    assert [each.spans for each in found] == [[each.answer] for each in answers]


def test_a_model_whose_tokens_see_all_has_no_unseen_suffix(model):
    with pytest.raises(ValueError, match="unseen_suffix=true is for models whose tokens see"):
        infill(model, [[1, known_special_tokens(model).mask]], SamplerConfig(unseen_suffix=True))
    with pytest.raises(ValueError, match="unseen_suffix has no effect without"):
        SamplerConfig(unseen_suffix=True, sampling_method="semi_ar_padding")
