"""Layouts: each stored tensor has one place in ours, and together they fill it."""

from __future__ import annotations

import torch

from llada_plugins.models.layout import Layout, Part, Piece

NAMES = Layout({"a.N.experts.N.up": "b.N.mlp.N.up_proj", "plain": "other"})
STACK = Layout(
    parts={
        "a.N.mlp.N.gate.weight": Part("b.N.gate_up.weight", numbered=True, share=(0, 2)),
        "a.N.mlp.N.up.weight": Part("b.N.gate_up.weight", numbered=True, share=(1, 2)),
        "a.N.w2": Part("b.N.down.weight"),
    }
)


def test_names_keep_their_numbers_in_order():
    assert NAMES.our_name("a.12.experts.7.up.weight") == "b.12.mlp.7.up_proj.weight"
    assert NAMES.our_name("plain.bias") == "other.bias"
    assert NAMES.our_name("a.12.up.weight") == "a.12.up.weight"


def test_a_name_goes_there_and_back():
    for name in ("b.12.mlp.7.up_proj.weight", "other.bias", "of.nobody"):
        (piece,) = NAMES.pieces(name, torch.empty(0))
        assert piece == Piece(piece.stored) and piece.is_whole
        assert NAMES.our_name(piece.stored) == name


def test_the_pieces_of_a_stack_fill_it_without_overlap():
    stack = torch.zeros(3, 4, 5)
    pieces = STACK.pieces("b.11.gate_up.weight", stack)
    assert {piece.stored for piece in pieces} == {
        f"a.11.mlp.{expert}.{each}.weight" for expert in range(3) for each in ("gate", "up")
    }
    for piece in pieces:
        assert STACK.our_name(piece.stored) == "b.11.gate_up.weight" and not piece.is_whole
        piece.of(stack).add_(1)
    assert torch.equal(stack, torch.ones(3, 4, 5))
    (second,) = (piece for piece in pieces if piece.stored == "a.11.mlp.1.up.weight")
    second.of(stack).fill_(2)
    assert torch.equal(stack[1, 2:], torch.full((2, 5), 2.0)) and stack.sum() == 60 + 10


def test_a_stack_that_is_stored_as_such_is_one_piece():
    assert STACK.pieces("b.0.down.weight", torch.empty(3, 5, 4)) == [Piece("a.0.w2")]
