"""The LLaDA transformer in reading order: bidirectional, pre-norm, SwiGLU, RoPE.

Parameter names equal the published checkpoint's, and numbers those of the published
modeling code (tests/test_model.py), without remote code, import side effects or a pinned
transformers. Nothing here knows of samplers, masks to fill or harnesses; `loading.py`
loads and saves it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .block import Block, rms_norm
from .columns import at_columns
from .compiling import Backend, Compiling
from .cuda_graph import Graph
from .features import FeaturePast
from .layer import ActivationCheckpointing, Layer, Streams, View
from .llada_config import LLaDAConfig
from .past import LayerPast, Past
from .replay import Replays
from .rotary import Rotations
from .slots import Slots, view_of
from .special_tokens import SpecialTokens
from .submodules import home, is_plain_linear, table
from .visible import visible_columns
from .vocabulary_product import by_parts, pays_by_parts

if TYPE_CHECKING:
    from .origin import Origin
    from .quantization import Quantization


BLOCKS = "model.transformer.blocks."  # beginning of the names of all tensors of the blocks


class LLaDA(ActivationCheckpointing):
    """LLaDA (arXiv 2502.09992): a bidirectional transformer that predicts all masked tokens.

    Called with token ids it returns logits (B, L, V); `hidden_states` and `head` are
    the two halves of that, for callers that need logits at a few positions only.
    """

    own_stream = False  # has the class an unmasking-policy stream of its own?
    quantization: Quantization | None = None  # what became of the weights when they were loaded

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        self.config = config
        transformer = {
            "wte": nn.Embedding(config.num_embeddings, config.d_model),
            "blocks": nn.ModuleList(Block(config, layer) for layer in range(config.n_layers)),
            "ln_f": rms_norm(config.d_model, config),
        }
        if not config.weight_tying:
            transformer["ff_out"] = nn.Linear(
                config.d_model, config.num_embeddings, bias=config.include_bias
            )
        self.model = nn.ModuleDict({"transformer": nn.ModuleDict(transformer)})
        # set where the checkpoint's files are at hand
        self.special_tokens: SpecialTokens | None = None
        # of a loaded model, what its checkpoint says beside the weights
        self.origin: Origin | None = None
        self.rotations = Rotations(config)
        self.compiling = Compiling("off")
        self.replays = Replays(self.compiling)

    def compile_layers(
        self,
        mode: str,
        backend: Backend = "inductor",
        make_graph: Callable[[], Graph] | None = None,
    ) -> None:
        """From here on layers run compiled, and small forwards are replayed on a GPU.

        mode: an option of `Compiling`. make_graph: see Replays.
        """
        self.compiling = Compiling(mode, backend)
        self.replays = Replays(self.compiling, make_graph)
        for module in self.modules():
            if isinstance(module, Layer):
                module.compiling = self.compiling

    @property
    def device(self) -> torch.device:
        """Where token ids belong; of an offloaded model, where it computes."""
        return home(self.embedding)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.embedding.parameters()).dtype

    @property
    def transformer(self) -> nn.ModuleDict:
        """All layers, under the names of the published checkpoint."""
        return cast(nn.ModuleDict, self.model["transformer"])

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The layers, first to last."""
        return cast(Sequence[nn.Module], self.transformer["blocks"])

    @property
    def embedding(self) -> nn.Embedding:
        """The embedding table; of an adapted model what took its place and looks ids up."""
        return cast(nn.Embedding, self.transformer["wte"])

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding table, under the name that PEFT and transformers look for."""
        return self.embedding

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        at: Tensor | tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Logits (B, L, V) for ids (B, L), or (N, V) at the N positions of `at`.

        at: bool (B, L), or their rows and columns, (N,) each.
        attention_mask: (B, L), nonzero = real token, or (B, L, L), nonzero = the row's
        token may attend to the column's. Without the latter, tokens see what
        config.attention says. position_ids: as in `hidden_states`. Raises ValueError where
        positions reach config.max_sequence_length.
        """
        hidden = self.hidden_states(
            input_ids, attention_mask, inputs_embeds=inputs_embeds, position_ids=position_ids
        )
        return self.head(hidden if at is None else hidden[at])

    @overload
    def hidden_states(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        every_layer: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def hidden_states(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        every_layer: Literal[True],
    ) -> list[Tensor]: ...

    def hidden_states(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        every_layer: bool = False,
    ) -> Tensor | list[Tensor]:
        """The final-norm hidden state (B, L, D), which `head` turns into logits.

        position_ids: (B, L) from 0, default 0, 1, 2 … in every row. Blocks of block-causal
        attention are counted by them, by default from a row's first real token.
        every_layer: a list of n_layers + 1 instead: the embeddings, the outputs of all
        blocks but the last, the final-norm state.
        """
        states: list[Tensor] | None = [] if every_layer else None
        hidden = self._run(
            input_ids, attention_mask, inputs_embeds, states, position_ids=position_ids
        ).hidden
        return hidden if states is None else [*states, hidden]

    def streams(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        columns: slice | Tensor = slice(None),
        past: Past | None = None,
        position_ids: Tensor | None = None,
    ) -> Streams:
        """Hidden state, and the score of an unmasking-policy stream where the model has one.

        inputs_embeds: go before ids. position_ids: (B, L) as in `hidden_states`.
        past: an empty one, which a forward of all columns fills with keys and values.
        columns: with a filled past, compute these alone, at their places among the
        others; the result is of them alone, and their keys and values are replaced in
        past, in place. As a tensor, (B, W) columns of each row.
        """
        return self._run(
            input_ids, attention_mask, inputs_embeds, None, columns, past, position_ids
        )

    def score_parameters(self) -> list[nn.Parameter]:
        """Of the model's own policy stream, the parameters that its score alone depends on."""
        return []

    @property
    def head_module(self) -> nn.Module:
        """The part that `head` computes with."""
        return self.embedding if self.config.weight_tying else self.transformer["ff_out"]

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of final-norm hidden states (..., D)."""
        if self.config.weight_tying:
            rows = table(self.embedding, self.config.num_embeddings)
            return by_parts(hidden, rows) if pays_by_parts(hidden) else F.linear(hidden, rows)
        head = cast(nn.Linear, self.transformer["ff_out"])
        if pays_by_parts(hidden) and is_plain_linear(head, hidden) and head.bias is None:
            return by_parts(hidden, head.weight)
        logits: Tensor = head(hidden)
        return logits

    def _run(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        inputs_embeds: Tensor | None,
        states: list[Tensor] | None,
        columns: slice | Tensor = slice(None),
        past: Past | None = None,
        position_ids: Tensor | None = None,
    ) -> Streams:
        """The final-norm hidden state, and the policy stream's score where there is one.

        states: receives the input of each block.
        """
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None:
            raise ValueError("give token ids (input_ids) or embeddings (inputs_embeds)")
        if past is not None:
            self._make_room(past, given)
        view = self._view(given, attention_mask, columns, past, position_ids)
        in_work, length = at_columns(given, columns), past.length if past else given.shape[1]
        if isinstance(past, Slots):  # of each slot, the columns of its rows side by side
            in_work = in_work.reshape(past.num_rows, -1, *given.shape[2:])
        found: Streams | None = None
        may_replay = states is None and self.replays.wanted(given.device)
        if may_replay and isinstance(columns, slice):
            to_the_end = columns.stop is None
            found = self.replays.run(self, self._compute, in_work, view, past, to_the_end, length)
        found = found or self._compute(in_work, view, states)
        return found if len(in_work) == len(given) else found.cut(len(given))

    def _compute(self, given: Tensor, view: View, states: list[Tensor] | None = None) -> Streams:
        """What `_run` returns, from ids (B, W) or embeddings (B, W, D) of the columns in work."""
        x = given if given.is_floating_point() else self.embedding(given)  # (B, W, D)
        x, confidence = self._stack(x, view, states)
        return Streams(self.transformer["ln_f"](x), confidence)

    def _view(
        self,
        given: Tensor,
        attention_mask: Tensor | None,
        columns: slice | Tensor,
        past: Past | None,
        position_ids: Tensor | None,
    ) -> View:
        """What all blocks share in a forward of some columns of given (B, L, ...)."""
        length, device = given.shape[1], given.device
        if isinstance(past, Slots):  # which know all of that
            return view_of(past, *self.rotations.first(past.length, device))
        visible = visible_columns(self.config, given, attention_mask, position_ids)
        if visible is not None:  # (B, 1, W, L), or of padding alone (B, 1, 1, L)
            rows = at_columns(visible, columns) if visible.dim() == 3 else visible[:, None]
            visible = rows[:, None]
        cos, sin = self.rotations.at(columns, length, device, position_ids)
        if past is None:
            assert columns == slice(None)
            return View(cos, sin, visible)
        if isinstance(columns, Tensor):
            return View(cos, sin, visible, columns, past.present())
        places = torch.arange(*columns.indices(length), device=device)  # (W,)
        view = View(cos, sin, visible, places, past.present())
        if isinstance(past, FeaturePast):
            return view._replace(features=past.in_work(), order=past.order, number=past.number)
        return view

    def _stack(
        self, x: Tensor, view: View, states: list[Tensor] | None
    ) -> tuple[Tensor, Tensor | None]:
        """All blocks on x; states, if given, receives the input of each."""
        for layer, block in enumerate(self.blocks):
            if states is not None:
                states.append(x)
            x = view.run(block, x, layer)
        return x, None

    @property
    def caching_blocks(self) -> Sequence[nn.Module]:
        """All that keep keys and values, in the order of a past."""
        return self.blocks

    def _make_room(self, past: Past, given: Tensor) -> None:
        """Give a past memory for given (B, L, ...) of what it has none for yet."""
        if not past:
            self._fill(past, given)
        if isinstance(past, FeaturePast):
            past.make_room(self.caching_blocks, len(given), self.config.d_model, self.dtype)

    def _fill(self, past: Past, given: Tensor) -> None:
        """Give an empty past memory for given (B, L, ...), each block's where it computes.

        A copy that accelerate's hooks make of an argument would lose what is written.
        """
        blocks, config = self.caching_blocks, self.config
        shape = (*past.room(*given.shape[:2]), config.num_kv_heads, config.head_dim)
        dtype = given.dtype if given.is_floating_point() else self.dtype
        like = torch.empty(0, dtype=dtype, device=given.device)
        if self.replays.wanted(given.device) and self.replays.lend(past, len(blocks), shape, like):
            return
        # as a block's projections lie in memory
        make = torch.zeros if isinstance(past, Slots) else torch.empty
        memory = (
            make((2, *shape), dtype=dtype, device=home(block)).transpose(2, 3) for block in blocks
        )
        past.fill([LayerPast(keys, values) for keys, values in memory], *shape[:2])
