"""The published loops (LLaDA, arXiv 2502.09992, Algorithms 3 and 5), written plainly.

Our own are held against them.

Every decoding step takes logits at all positions, perturbs them in float64 over (B, L,
V), takes a softmax over all of it and one top-k a row; a likelihood masks one request
at a time and takes logits at all positions too. Not for use: `llada_plugins.generate`
decodes the same tokens and `log_likelihood` estimates the same bound with less work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llada_plugins.models.llada import LLaDA
from llada_plugins.sampling.config import SamplerConfig


class Decoded(NamedTuple):
    """Prompt and answer (B, L), and the forward passes it took."""

    tokens: Tensor
    num_forwards: int


def gumbel(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """exp(l) / (-log u)^T in float64: its argmax is a sample at temperature T.

    At 0 it is the logits themselves.
    """
    if temperature == 0:
        return logits
    logits = logits.double()
    uniform = torch.rand(
        logits.shape, dtype=torch.float64, device=logits.device, generator=generator
    )
    return logits.exp() / (-uniform.log()) ** temperature


@torch.inference_mode()
def unmask_step(
    model: LLaDA,
    tokens: Tensor,
    end: int,
    counts: list[int],
    mask_id: int,
    temperature: float,
    generator: torch.Generator | None = None,
) -> None:
    """Unmask in place the counts[row] most probable proposals of each row of tokens (B, L).

    Only positions before column `end` count.
    """
    logits = model(tokens)  # (B, L, V)
    proposal = gumbel(logits, temperature, generator).argmax(-1)  # (B, L)
    confidence = logits.softmax(-1).gather(-1, proposal[..., None])[..., 0]  # (B, L)
    confidence = confidence.masked_fill(tokens != mask_id, -torch.inf)
    confidence[:, end:] = -torch.inf
    for row, count in enumerate(counts):
        chosen = confidence[row].topk(count).indices
        tokens[row, chosen] = proposal[row, chosen]


def generate(
    model: LLaDA,
    prompts: Tensor,
    config: SamplerConfig,
    mask_id: int,
    generator: torch.Generator | None = None,
) -> Decoded:
    """Decode prompts (B, P) of one length under config's lengths, steps and temperature.

    Other options are not looked at.
    """
    batch, start = prompts.shape
    tokens = torch.cat([prompts, prompts.new_full((batch, config.gen_length), mask_id)], 1)
    share, remainder = divmod(config.block, config.steps_per_block)
    for end in range(start + config.block, tokens.shape[1] + 1, config.block):
        for step in range(config.steps_per_block):
            unmask_step(
                model,
                tokens,
                end,
                [share + (step < remainder)] * batch,
                mask_id,
                config.temperature,
                generator,
            )
    return Decoded(tokens, config.num_blocks * config.steps_per_block)


@torch.inference_mode()
def generate_block_causal(
    model: LLaDA,
    prompt: list[int],
    config: SamplerConfig,
    mask_id: int,
    stop: Callable[[list[int]], bool],
) -> list[int]:
    """The answer to one prompt of a block-causal model, as LLaDA2's generate decodes it, greedy.

    Every step is a forward of the row up to the end of the block in work, with logits at all
    of its positions; the share of steps_per_block most probable proposals stay. The prompt is
    of whole blocks. stop: asked at the end of every block.
    """
    row, width = list(prompt), config.block
    share, remainder = divmod(width, config.steps_per_block)
    while len(row) < len(prompt) + config.gen_length:
        tokens = torch.tensor([row + [mask_id] * width], device=model.device)  # (1, L)
        for step in range(config.steps_per_block):
            logits = model(tokens)[0, -width:].float()  # (W, V)
            block = tokens[0, -width:]
            probability, proposal = logits.softmax(-1).max(-1)
            probability = probability.masked_fill(block != mask_id, -torch.inf)
            chosen = probability.topk(share + (step < remainder)).indices
            block[chosen] = proposal[chosen]
        row = tokens[0].tolist()
        if stop(row[len(prompt) :]):
            break
    return row[len(prompt) :]


@torch.inference_mode()
def log_likelihood(
    model: LLaDA,
    prompt: Tensor,
    answer: Tensor,
    mask_id: int,
    mc_num: int,
    batch: int,
    generator: torch.Generator | None = None,
) -> list[float]:
    """An estimate of log p(answer | prompt) from each of mc_num / batch batches, in nats.

    Their mean is the published value.
    """
    length, values = len(answer), []
    clean = torch.cat([prompt, answer]).repeat(batch, 1)  # (B, L)
    for _ in range(mc_num // batch):
        first = int(torch.randint(1, length + 1, (), generator=generator))
        count = (
            torch.linspace(float(first), first + (batch - 1) * (length / batch), batch)
            .round()
            .long()
        )
        count = (count - 1) % length + 1  # (B,)
        masked = torch.zeros(clean.shape, dtype=torch.bool)
        for row, number in enumerate(count.tolist()):
            masked[row, len(prompt) + torch.randperm(length, generator=generator)[:number]] = True
        masked = masked.to(clean.device)
        logits = model(clean.masked_fill(masked, mask_id))  # (B, L, V)
        loss = F.cross_entropy(logits[masked].float(), clean[masked], reduction="none")
        weight = (length / count).repeat_interleave(count).to(clean.device)
        values.append(-float((loss * weight).sum()) / batch)
    return values
