"""Training of families whose logits are shifted.

The loss is that of the same model with its logits moved one column to the right.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llada_plugins.diffusion.denoiser import Canvas, model_denoiser
from llada_plugins.diffusion.forward_process import another_of, mask_tokens
from llada_plugins.models.families import FAMILIES
from tests.family_checkpoints import rewrite, write_checkpoint
from tests.tolerance import token_error
from training import sft
from training.data.byte_tokenizer import byte_tokenizer
from training.loop import objectives
from training.loop.distillation import Recipe, distilled
from training.loop.objectives import Objective
from training.loop.random_streams import random_stream
from training.loop.reading import Reading, predicting
from training.runs import jobs
from training.runs.policy_model import PolicyOutput

pytestmark = pytest.mark.floats

MASK, VOCAB = 9, 10


class Plain(nn.Module):
    """Logits (B, L, V) that depend on every token of a row, in each of the forms asked for."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(VOCAB, VOCAB, generator=generator))

    def logits(self, tokens: Tensor) -> Tensor:
        seen = self.table[tokens]
        place = torch.arange(tokens.shape[1]).cos()[:, None]
        return seen + seen.mean(1, keepdim=True) * place

    def forward(
        self, tokens: Tensor, more: Any = None, *, at: Any = None, prompt_lengths: Any = None
    ) -> Any:
        logits = self.logits(tokens)
        return logits if at is None else logits[at]


class Moved(Plain):
    """The same with logits moved to the columns whose tokens they predict."""

    def logits(self, tokens: Tensor) -> Tensor:
        logits = super().logits(tokens)
        return torch.cat([logits[:, :1], logits[:, :-1]], 1)


class Scored(nn.Module):
    """A model with a score, as Remask SFT trains it."""

    def __init__(self, of: Plain) -> None:
        super().__init__()
        self.of = of

    def forward(self, tokens: Tensor, at: Any) -> PolicyOutput:
        return PolicyOutput(self.of(tokens, at=at), self.of.table[tokens, 0])


def remask(shifted: bool) -> Objective:
    return objectives.remask_sft(
        MASK,
        r_incorrect=0.3,
        lambda_ups=0.5,
        label_smoothing=0.05,
        train_backbone=True,
        incorrect=lambda model: another_of(torch.arange(MASK)),
        reading=Reading(shifted),
    )


def distil(shifted: bool) -> Objective:
    recipe = Recipe(
        least_masked=0.3,
        last_least_masked=0.8,
        most_masked=0.8,
        first_window=4,
        last_window=4,
        order="teacher",
        complement=True,
        certainty=2.0,
        temperature=0.5,
        certainty_of="all",
    )
    return distilled(MASK, recipe, lambda: 0.5, Reading(shifted))


OBJECTIVES = {
    "sft": (lambda shifted: objectives.sft(MASK, Reading(shifted)), nn.Identity),
    "pretrain": (lambda shifted: objectives.pretrain(MASK, 0.0, Reading(shifted)), nn.Identity),
    "routed_sft": (lambda shifted: objectives.routed_sft(MASK, Reading(shifted)), nn.Identity),
    "remask_sft": (remask, Scored),
    "distill": (distil, nn.Identity),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_is_that_of_logits_in_their_places(name, training):
    make, wrap = OBJECTIVES[name]
    batch = {
        "input_ids": torch.randint(0, MASK, (4, 12), generator=torch.Generator().manual_seed(1)),
        "weight": (torch.arange(12) >= torch.tensor([[0], [3], [5], [11]])).float(),
        "order": torch.arange(12).expand(4, 12),
    }
    plain, moved = (
        (each() if wrap is nn.Identity else wrap(each())).train(training) for each in (Plain, Moved)
    )
    found = make(True)(plain, batch, random_stream("noise"))
    expected = make(False)(moved, batch, random_stream("noise"))
    unshifted = make(False)(plain, batch, random_stream("noise"))
    assert torch.equal(found.sum, expected.sum) and torch.equal(found.count, expected.count)
    assert not torch.equal(found.sum, unshifted.sum)


def test_a_document_that_is_kept_apart_begins_at_its_own_column():
    at = torch.tensor([[True, False, True, True], [False, True, False, True]])
    assert predicting(at, False) is at
    rows, columns = predicting(at, True)
    assert rows.tolist() == [0, 0, 0, 1, 1] and columns.tolist() == [0, 1, 2, 0, 2]
    document = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    apart = document[:, :, None] == document[:, None]
    rows, columns = predicting(at, True, apart)
    assert rows.tolist() == [0, 0, 0, 1, 1] and columns.tolist() == [0, 2, 2, 1, 2]
    assert torch.equal(predicting(at, True, torch.ones(2, 4))[1], predicting(at, True)[1])


def test_training_and_decoding_read_the_same_logits(tmp_path):
    """sft's loss of a Dream is the one of the denoiser's predictions."""
    folder = write_checkpoint("dream", tmp_path / "dream")
    model = jobs.trainable(folder).eval().requires_grad_(False)
    assert FAMILIES[model.config.family].shift and jobs.reading_of(model.config) == Reading(True)
    mask_id = jobs.mask_id(model.config)
    tokens = torch.arange(60).view(3, 20)
    weight = (torch.arange(20) >= torch.tensor([[1], [8], [15]])).float()
    batch = {"input_ids": tokens, "weight": weight}
    loss = objectives.sft(mask_id, Reading(True))(model, batch, random_stream("noise"))
    noisy = mask_tokens(tokens, weight > 0, mask_id, random_stream("noise"))
    canvas = Canvas(noisy.tokens, torch.zeros(3, dtype=torch.long), padded=False)
    prediction = model_denoiser(model)(canvas, slice(0, 20))
    columns = torch.arange(20).expand(3, 20)
    log_p = prediction.logits_at(columns).log_softmax(-1)
    nll = -log_p.gather(-1, tokens[..., None])[..., 0]
    share = weight / noisy.p_mask * noisy.masked
    bound = token_error(model) * float(share.sum())
    torch.testing.assert_close(loss.sum, (nll * share).sum(), atol=bound, rtol=0)


def test_ids_that_config_json_does_not_name_are_those_of_decoding(tmp_path, sudokus):
    """iLLaDA's mask is in neither of its files: what is trained states it."""
    folder = write_checkpoint("illada", tmp_path / "illada")
    byte_tokenizer(folder)
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("<|mdm_mask|>", "<|unused|>"))
    rewrite(folder, mask_token_id=...)
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        path.write_text(path.read_text().replace("<|mdm_mask|>", "<|unused|>"))
    given = ["--model", str(folder), "--data", str(sudokus), "--output_dir", str(tmp_path / "out")]
    flags = ["--max_steps", "1", "--save_strategy", "no", "--use_cpu"]
    sft.main([*given, *flags, "--per_device_train_batch_size", "2"])
    assert jobs.mask_id(jobs.trainable(tmp_path / "out").config) == FAMILIES["illada"].mask_id
