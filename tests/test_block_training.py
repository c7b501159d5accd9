"""Training of block-causal models: each block alone, given the clean ones before it.

The oracle is written out by hand: a forward for every block of every row, and who sees whom.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llada_plugins.diffusion.forward_process import Noisy, another_of, mask_tokens, remask_noise
from llada_plugins.models.llada import LLaDA
from tests.small_training import EOS_ID, MASK_ID, ORDINARY, VOCAB, small_model
from tests.tolerance import measured, rounding, token_error
from training.data.corpus import collate_rows
from training.data.examples import Example, collate_answers
from training.loop import objectives
from training.loop.random_streams import random_stream
from training.loop.reading import Reading
from training.loop.throughput import Throughput, training_flops
from training.runs import jobs
from training.runs.policy_model import policy_model

pytestmark = pytest.mark.floats

WIDTH = 3
BLOCKS = dict(attention="block_causal", block_length=WIDTH)


def tokens_of(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, ORDINARY, (length,), generator=generator).tolist()


def answers() -> dict[str, Tensor]:
    """Rows whose prompts end inside a block, at its edge, and after one token."""
    rows = [(13, 4), (10, 6), (5, 1)]
    return collate_answers(EOS_ID)(
        [Example(tokens_of(length, length), prompt) for length, prompt in rows]
    )


def naive_states(model: LLaDA, noisy: list[int], clean: list[int], shifted: bool) -> Tensor:
    """Final states (L, D): each block's of a row of its own, after its clean blocks.

    shifted: of the column before each token's own.
    """
    found = []
    for begin in range(0, len(clean), WIDTH):
        end = min(begin + WIDTH, len(clean))
        row = clean[:begin] + noisy[begin:end]
        sees = [[j // WIDTH <= i // WIDTH for j in range(end)] for i in range(end)]
        states = model.hidden_states(torch.tensor([row]), torch.tensor([sees]))[0]
        if shifted:
            states = torch.cat([states[:1], states[:-1]])
        found.append(states[begin:])
    return torch.cat(found)


def naive_loss(model: LLaDA, batch: dict[str, Tensor], noisy, shifted: bool) -> Tensor:
    """Cross-entropy at masked tokens over p, weighted."""
    total = torch.zeros(())
    for row, clean in enumerate(batch["input_ids"].tolist()):
        logits = model.head(naive_states(model, noisy.tokens[row].tolist(), clean, shifted))
        for column, token in enumerate(clean):
            if noisy.masked[row, column]:
                loss = F.cross_entropy(logits[column], torch.tensor(token))
                share = batch["weight"][row, column] / noisy.p_mask[row, column]
                total = total + loss * share
    return total


def shares(batch: dict[str, Tensor], noisy) -> float:
    return float((batch["weight"] / noisy.p_mask * noisy.masked).sum())


def gradients(loss: Tensor, model: LLaDA) -> Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])


@pytest.mark.parametrize("shifted", [False, True])
def test_the_loss_of_sft_is_that_of_every_block_alone(shifted):
    model, batch = small_model(**BLOCKS), answers()
    tokens, maskable = batch["input_ids"], batch["weight"] > 0
    found = objectives.sft(MASK_ID, Reading(shifted, WIDTH))(model, batch, random_stream("noise"))
    block = (torch.arange(tokens.shape[1]) // WIDTH).expand_as(tokens)
    noisy = mask_tokens(tokens, maskable, MASK_ID, random_stream("noise"), block=block)
    expected = naive_loss(model, batch, noisy, shifted)
    bound = token_error(model) * shares(batch, noisy)
    torch.testing.assert_close(found.sum, expected, atol=bound, rtol=0)
    assert torch.equal(found.count, batch["weight"].sum())

    def gradient(of: LLaDA) -> Tensor:
        with torch.enable_grad():
            return gradients(naive_loss(of, batch, noisy, shifted), of)

    torch.testing.assert_close(
        gradients(found.sum, model), gradient(model), atol=measured(gradient, model), rtol=0
    )


@pytest.mark.parametrize("shifted", [False, True])
def test_complementary_masks_predict_every_answer_token_once_and_weigh_all_alike(shifted):
    """Two views by hand, each of every block alone; shares are ones."""
    model, batch = small_model(**BLOCKS), answers()
    tokens, maskable = batch["input_ids"], batch["weight"] > 0
    objective = objectives.complementary(MASK_ID, Reading(shifted, WIDTH))
    found = objective(model, batch, random_stream("noise"))
    block = (torch.arange(tokens.shape[1]) // WIDTH).expand_as(tokens)
    first = mask_tokens(tokens, maskable, MASK_ID, random_stream("noise"), block=block)
    alike, certain = torch.ones_like(batch["weight"]), torch.ones_like(first.p_mask)

    def view(masked: Tensor) -> Noisy:
        return Noisy(torch.where(masked, MASK_ID, tokens), masked, certain)

    views = [view(first.masked), view(maskable & ~first.masked)]
    assert all(each.masked.any() for each in views)
    expected = sum(naive_loss(model, {**batch, "weight": alike}, each, shifted) for each in views)
    num = int(maskable.sum())
    bound = token_error(model) * num + rounding(num, expected)
    torch.testing.assert_close(found.sum, expected, atol=bound, rtol=0)
    assert float(found.count) == num


@pytest.mark.parametrize("boundaries", [False, True], ids=["rows", "documents"])
@pytest.mark.parametrize("training", [True, False])
def test_the_loss_of_pretraining_is_that_of_every_block_alone(training, boundaries):
    model = small_model(**BLOCKS).train(training)
    first, second = tokens_of(5, 1), tokens_of(6, 2)
    rows = [[*first, EOS_ID, *second], tokens_of(9, 3)]
    batch = collate_rows(EOS_ID, boundaries)(rows)
    reading = Reading(block_length=WIDTH)
    objective = objectives.pretrain(MASK_ID, 0.0, reading)
    found = objective(model, batch, random_stream("noise"))
    # what stands alone, by the places that it has in the batch
    places = [(0, 0, 6), (0, 6, 12)] if boundaries else [(0, 0, 12)]
    block = reading.blocks(batch["input_ids"], batch.get("attention_mask"))
    if training:
        noise = (batch["input_ids"], batch["weight"] > 0, MASK_ID, random_stream("noise"))
        noisy = mask_tokens(*noise, block=block)
    else:
        noisy = objectives.counted_noise(batch["input_ids"], batch["weight"] > 0, MASK_ID, block)
    expected = torch.zeros(())
    for row, begin, end in [*places, (1, 0, 9)]:
        part = {name: batch[name][row : row + 1, begin:end] for name in ("input_ids", "weight")}
        of = type(noisy)(*(each[row : row + 1, begin:end] for each in noisy))
        expected = expected + naive_loss(model, part, of, False)
    bound = token_error(model) * shares(batch, noisy)
    torch.testing.assert_close(found.sum, expected, atol=bound, rtol=0)


def test_each_block_has_noise_of_its_own_and_the_prompt_none():
    tokens = torch.zeros(400, 12, dtype=torch.long)
    maskable = torch.arange(12).expand(400, -1) >= 4
    block = (torch.arange(12) // WIDTH).expand(400, -1)
    noisy = mask_tokens(tokens, maskable, MASK_ID, torch.Generator().manual_seed(0), block=block)
    assert not noisy.masked[:, :4].any()
    assert (noisy.p_mask.view(400, 4, WIDTH) == noisy.p_mask.view(400, 4, WIDTH)[..., :1]).all()
    p = noisy.p_mask[:, [4, 6, 9]]  # of three blocks
    # independent and uniform: 4 sigma of a correlation and of a mean, and the seed is fixed
    assert p.T.corrcoef().triu(1).abs().max() < 4 / 400**0.5
    assert (p.mean(0) - 0.5).abs().max() < 4 * (1 / 12 / 400) ** 0.5
    hit = (noisy.masked.float() - noisy.p_mask)[:, 4:]
    assert hit.mean().abs() < 4 * (1 / 6 / hit.numel()) ** 0.5


def test_an_evaluation_masks_a_counted_number_of_each_block():
    tokens = torch.tensor([tokens_of(11, seed) for seed in range(50)])
    maskable = torch.arange(11).expand(50, -1) >= 2
    block = (torch.arange(11) // WIDTH).expand(50, -1)
    noisy = objectives.counted_noise(tokens, maskable, MASK_ID, block)
    assert not noisy.masked[:, :2].any()
    seen = []
    for number, size in enumerate((1, 3, 3, 2)):
        of = block[0] == number
        counts = noisy.masked[:, of].sum(-1)
        expected = (counts / size)[:, None].expand(-1, int(of.sum()))
        assert torch.equal(noisy.p_mask[:, of], expected)
        assert set(counts.tolist()) == set(range(1, size + 1))
        seen.append(counts)
    assert not torch.equal(seen[1], seen[2])
    alone = objectives.counted_noise(tokens[3:4, :9], maskable[:1, :9], MASK_ID, block[:1, :9])
    other = objectives.counted_noise(
        tokens[3:4], maskable[:1] & (block[:1] < 3), MASK_ID, block[:1]
    )
    assert torch.equal(alone.tokens[0], other.tokens[0, :9])


@pytest.mark.parametrize("training", [True, False])
def test_the_loss_of_remask_sft_is_that_of_every_block_alone(training):
    backbone, batch = small_model(**BLOCKS), answers()
    model = policy_model(backbone, 4, torch.Generator().manual_seed(1), joint=True)
    model.train(training)
    tokens, answer = batch["input_ids"], batch["weight"] > 0
    options = dict(r_incorrect=0.8, lambda_ups=0.5, label_smoothing=0.05)
    replace = another_of(torch.arange(ORDINARY))
    objective = objectives.remask_sft(
        MASK_ID,
        train_backbone=True,
        incorrect=lambda _: replace,
        reading=Reading(block_length=WIDTH),
        **options,
    )
    found = objective(model, batch, random_stream("noise"))
    block = (torch.arange(tokens.shape[1]) // WIDTH).expand_as(tokens)
    noisy = remask_noise(
        tokens, answer, MASK_ID, random_stream("noise"), r=0.8, replace=replace, block=block
    )
    assert noisy.incorrect.any() and noisy.masked.any()

    def expected(of: LLaDA, head: torch.nn.Module) -> Tensor:
        total = torch.zeros(())
        for row, clean in enumerate(tokens.tolist()):
            states = naive_states(of, noisy.tokens[row].tolist(), clean, False)
            log_p = of.head(states).log_softmax(-1)[torch.arange(len(clean)), tokens[row]]
            label = torch.where(
                noisy.masked[row], log_p.exp().detach(), (~noisy.incorrect[row]).float()
            )
            label = 0.05 + 0.9 * label
            score = F.binary_cross_entropy_with_logits(head(states), label, reduction="none")
            weight = batch["weight"][row]
            total = total + 0.5 * (score * weight).sum()
            total = total - (log_p * weight / noisy.p_mask[row])[noisy.masked[row]].sum()
        return total[None]

    with torch.no_grad():
        assert model.head is not None
        naive = expected(backbone, model.head)
        bound = (token_error(backbone) * shares(batch, noisy)) + measured(
            lambda of, head: torch.cat([expected(of, head)] * 2), backbone, model.head
        )
    torch.testing.assert_close(found.sum.detach()[None], naive, atol=bound, rtol=0)
    assert (found.predictions is None) == training


def test_columns_of_whole_prompt_blocks_have_no_noisy_copy():
    model, seen = small_model(**BLOCKS), []
    batch = collate_answers(EOS_ID)([Example(tokens_of(20, 1), 16), Example(tokens_of(18, 2), 14)])
    forward = model._run

    def watched(tokens: Tensor, *rest, **more):
        seen.append(tuple(tokens.shape))
        return forward(tokens, *rest, **more)

    model._run = watched
    objectives.sft(MASK_ID, Reading(block_length=WIDTH))(model, batch, random_stream("noise"))
    # noisy: columns 12 to 19; clean: all but the last block
    assert seen == [(2, 8 + 18)]


@pytest.mark.parametrize("shape", [{}, BLOCKS], ids=["full", "blocks"])
def test_sft_computes_logits_of_masked_tokens_alone(shape):
    model, batch, seen = small_model(**shape), answers(), []
    head, reading = model.head, Reading(block_length=shape.get("block_length"))

    def watched(hidden: Tensor) -> Tensor:
        seen.append(tuple(hidden.shape))
        return head(hidden)

    model.head = watched
    objectives.sft(MASK_ID, reading)(model, batch, random_stream("noise"))
    block = reading.blocks(batch["input_ids"])
    noise = (batch["input_ids"], batch["weight"] > 0, MASK_ID, random_stream("noise"))
    assert seen == [(int(mask_tokens(*noise, block=block).masked.sum()), model.config.d_model)]


def test_flops_of_a_token_are_those_of_its_noisy_and_its_clean_column():
    model, length = small_model(**BLOCKS), 12
    full = small_model()
    per_column = training_flops(full, 0)  # weights, and half a head
    head = 6 * VOCAB * 16 / 2
    attention = 12 * 2 * 16 * (length + WIDTH) / 2  # of two layers, 16 wide
    assert training_flops(model, length) == 2 * (per_column - head + attention) + head
    share = 0.25
    expected = (1 + share) * (per_column - head + attention) + share * head
    assert training_flops(model, length, share) == expected


def test_tokens_a_second_count_a_text_once():
    model, batch = small_model(**BLOCKS), answers()
    throughput = Throughput()
    throughput.count([batch])
    assert throughput._tokens == batch["input_ids"].numel()
    rows = [Example(tokens_of(8, 1), 6), Example(tokens_of(12, 2), 9)]
    assert jobs.noisy_share(model.config, rows) == 5 / 20
    assert jobs.noisy_share(small_model().config, rows) == 1


def test_rows_are_padded_to_whole_blocks_as_far_as_the_context_reaches():
    rows = [Example(tokens_of(7, 1), 3), Example(tokens_of(5, 2), 2)]
    batch = collate_answers(EOS_ID, WIDTH, 20)(rows)
    assert batch["input_ids"].shape == (2, 9)
    assert batch["input_ids"][0, 7:].tolist() == [EOS_ID] * 2
    assert batch["weight"].sum(-1).tolist() == pytest.approx([1, 1])
    assert collate_answers(EOS_ID, WIDTH, 8)(rows)["input_ids"].shape == (2, 8)
    assert collate_answers(EOS_ID)(rows)["input_ids"].shape == (2, 7)
