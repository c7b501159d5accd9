"""Tokens of texts in the forms in which stock OpenCompass asks a model for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .opencompass_refusals import MaskedModel

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


class TokenModel(MaskedModel):
    """A model whose tokenizer counts, encodes and decodes."""

    tokenizer: PreTrainedTokenizerBase

    def get_token_len(self, prompt: str) -> int:
        """Tokens of a rendered prompt."""
        return len(self._ids(prompt))

    def encode(self, prompt: str) -> Tensor:
        """(1, L) token ids of a rendered prompt."""
        import torch

        return torch.tensor([self._ids(prompt)], dtype=torch.long)

    def decode(self, tokens: Tensor) -> str:
        """The text of (L,) or (1, L) token ids; a BOS that `encode` adds again is left out."""
        ids = tokens.reshape(-1).tolist()
        string = self.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        assert isinstance(string, str)
        bare = string.removeprefix(self.tokenizer.bos_token or "")
        return bare if self._ids(bare) == ids else string

    def _ids(self, string: str) -> list[int]:
        from llada_plugins.models import text

        return text.encode(self.tokenizer, string)
