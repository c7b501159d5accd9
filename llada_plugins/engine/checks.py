"""What an Engine refuses of a checkpoint or a request: each in one line of ValueError."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llada_plugins.models.folder import special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llada_plugins.models.llada_config import LLaDAConfig
    from llada_plugins.models.special_tokens import SpecialTokens


def mask_known(
    folder: Path, tokenizer_folder: Path, config: LLaDAConfig, mask_id: int | None
) -> SpecialTokens:
    """The special tokens of the checkpoint in `folder`, whose mask something must name."""
    special = special_tokens(tokenizer_folder, config, mask_id)
    if special is None:
        raise ValueError(
            f"{folder}: neither config.json (mask_token_id) nor the tokenizer names a "
            "mask token: pass mask_id=…"
        )
    return special


def check_bos_token(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Refuse to add a BOS that the tokenizer of this folder does not have."""
    if tokenizer.bos_token_id is None:
        raise ValueError(
            f"add_bos_token=true, but the tokenizer in {folder} has no bos_token: leave it out"
        )


def context_length(config: LLaDAConfig, asked: int | None) -> int:
    """Tokens that prompt and answer may have together; asked: the option max_length."""
    max_length = asked or config.max_sequence_length
    if max_length > config.max_sequence_length:
        raise ValueError(
            f"max_length={max_length} exceeds the model's context of "
            f"{config.max_sequence_length} tokens"
        )
    return max_length


def check_answers(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    max_answer: int,
    max_length: int,
    method: str,
) -> None:
    """Refuse an answer that is empty, or that a router does not know.

    max_answer: tokens of the longest answer that the method knows. max_length: of the
    model's context.
    """
    for number, (_, answer) in enumerate(pairs):
        if not len(answer):
            raise ValueError(f"answer {number} is empty: there is nothing to score")
        if len(answer) > max_answer and max_answer < max_length:
            raise ValueError(
                f"request {number}: an answer of {len(answer)} tokens exceeds the "
                f"{max_answer} that {method} knows (max_positions of its router): "
                "train a longer one (training.router_sft --max_positions), or use llada"
            )


def check_seeds(max_answer: int | None, method: str) -> None:
    """Refuse likelihoods of a block-causal model with a router; max_answer: None without one."""
    if max_answer is not None:
        raise ValueError(
            f"{method}: a likelihood of a block-causal model holds several masked copies of an "
            "answer, and a router seeds one: use llada"
        )
