"""Where Remask SFT's incorrect tokens come from: a row of INCORRECT_FROM each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llada_plugins.diffusion.forward_process import Replace, another_of
from llada_plugins.models.tokenizer import load_tokenizer

from .jobs import AnswerJob, mask_id, reading_of


def answer_tokens(job: AnswerJob) -> list[int]:
    """Ids that occur in the training data's answers."""
    found: set[int] = set()
    for example in job.train:
        found.update(example.input_ids[example.prompt_length :])
    return sorted(found)


def ordinary_tokens(job: AnswerJob) -> list[int]:
    """The tokenizer's ids that the model knows, without special tokens."""
    tokenizer = load_tokenizer(job.tokenizer_folder)
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return [
        token
        for token in range(min(len(tokenizer), job.model.config.vocab_size))
        if token not in special
    ]


# from the job, before training, to what gives each batch's replacements, given the model
Source = Callable[[AnswerJob], Callable[[nn.Module], Replace]]


def _alphabet(ids: Callable[[AnswerJob], list[int]]) -> Source:
    def source(job: AnswerJob) -> Callable[[nn.Module], Replace]:
        found = [token for token in ids(job) if token != job.model.config.mask_token_id]
        if len(found) < 2:
            raise ValueError(
                f"--incorrect_from answers: the answers hold {len(found)} different tokens, "
                "incorrect ones need at least 2"
            )
        replace = another_of(torch.tensor(found))
        return lambda model: replace

    return source


def _samples(job: AnswerJob) -> Callable[[nn.Module], Replace]:
    """The model's own samples: the errors that parallel decoding makes.

    They are drawn at the chosen positions at once, all masked.
    """
    mask_token, reading = mask_id(job.model.config), reading_of(job.model.config)

    def source(model: nn.Module) -> Replace:
        def replace(
            noisy: Tensor, chosen: Tensor, tokens: Tensor, generator: torch.Generator
        ) -> Tensor:
            with torch.no_grad():
                given = reading.given(noisy.masked_fill(chosen, mask_token), tokens, chosen)
                at = given.predicting(chosen)
                logits = model(given.tokens, at, **given.options).logits  # (N, V)
            logits = logits.double()
            logits[:, mask_token] = -torch.inf
            cumulative = logits.softmax(-1).cumsum(-1)
            draw = torch.rand(
                len(logits), 1, generator=generator, device=generator.device, dtype=torch.float64
            )
            found = torch.searchsorted(
                cumulative, draw.to(logits.device) * cumulative[:, -1:], right=True
            )
            return found[:, 0].clamp(max=logits.shape[-1] - 1)

        return replace

    return source


INCORRECT_FROM: dict[str, Source] = {
    "answers": _alphabet(answer_tokens),
    "vocabulary": _alphabet(ordinary_tokens),
    "samples": _samples,
}
