"""Options as controls of a form, made from the fields that declare them.

Those of decoding, and those of each method beside them.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from llada_plugins.engine.engine import Engine
from llada_plugins.methods.table import METHODS
from llada_plugins.options.fields import build, coerce
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.settings.table import all_presets, find

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# stand above the others of their class, which are folded away
MAIN = (
    "gen_length",
    "steps",
    "block_length",
    "temperature",
    "threshold",
    "confidence_source",
    "cache",
    # of methods
    "ups",
    "router",
    "method",
    "num_candidates_per_block",
    "num_demasking_candidates",
    "backmasking_threshold",
    "backmasking_lookback",
    "max_prm_calls",
)
ABSENT = ""  # the choice of no value
# numbers are text: Gradio's component for them sends 0 where nothing is entered
Kind = Literal["check", "choice", "text"]
Value = bool | str  # of a control


class Control(NamedTuple):
    """What a person sets an option with."""

    name: str
    help: str
    kind: Kind
    choices: tuple[str, ...] = ()  # of a choice; ABSENT among them where the option may be unset


@functools.cache
def controls(kind: type[DataclassInstance] = SamplerConfig) -> tuple[Control, ...]:
    """Every option of a class, by default those of decoding; those of MAIN first."""
    kinds = typing.get_type_hints(kind)
    found = [
        Control(field.name, field.metadata["help"], *_form(kinds[field.name]))
        for field in fields(kind)
    ]
    places = {name: place for place, name in enumerate(MAIN)}
    return tuple(sorted(found, key=lambda control: places.get(control.name, len(MAIN))))


@functools.cache
def controls_of_methods() -> dict[str, tuple[Control, ...]]:
    """The controls of each method's own options, of those methods that have some."""
    found = {name: controls(method.options) for name, method in METHODS.items()}
    return {name: each for name, each in found.items() if each}


def _form(kind: Any) -> tuple[Kind, tuple[str, ...]]:
    """How a value of the declared type is entered, and what it can be chosen from."""
    parts = typing.get_args(kind) if _is_union(kind) else (kind,)
    optional = (ABSENT,) * (type(None) in parts)
    parts = tuple(part for part in parts if part is not type(None))
    if parts == (bool,):
        return ("choice", (ABSENT, "true", "false")) if optional else ("check", ())
    if all(typing.get_origin(part) is typing.Literal for part in parts):
        named = [str(value) for part in parts for value in typing.get_args(part)]
        return "choice", (*optional, *named)
    return "text", ()


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def shown(options: DataclassInstance) -> dict[str, Value]:
    """What each control says of these options."""
    return {
        control.name: _entered(control, getattr(options, control.name))
        for control in controls(type(options))
    }


def _entered(control: Control, value: Any) -> Value:
    if control.kind == "check":
        return bool(value)
    if value is None:
        return ABSENT
    return str(value).lower() if isinstance(value, bool) else str(value)


def given(options: DataclassInstance, entered: Mapping[str, Value]) -> dict[str, Any]:
    """What a person has changed of these options, as values of their types.

    The others are left as they are, since what stands for them may depend on those that
    are given. ValueError on a value that its option does not take.
    """
    untouched = shown(options)
    changed = {
        name: None if value == ABSENT else value
        for name, value in entered.items()
        if value != untouched[name]
    }
    return coerce(type(options), changed)


def preset_names(pretrained: str | None) -> list[str]:
    """The published settings, those of this checkpoint first."""
    presets = all_presets().values()
    return [each.name for each in sorted(presets, key=lambda each: each.pretrained != pretrained)]


def with_preset(engine: Engine, name: str) -> dict[str, Value]:
    """What the controls say where a published setting's options of decoding hold; ABSENT: none.

    ValueError where they do not fit the engine's model.
    """
    options = coerce(SamplerConfig, find(name).options) if name else {}
    return shown(engine.sampler_for(options))


def with_preset_of(options: DataclassInstance, name: str) -> dict[str, Value]:
    """The same of a method's own options, of which a setting may name some."""
    return shown(build(type(options), find(name).options if name else {}, options))


class Entered(NamedTuple):
    """What all controls of a setting say, by the names of their options."""

    sampler: dict[str, Value]
    of_methods: dict[str, dict[str, Value]]  # by the method that they are of


def paired(values: Sequence[Value]) -> Entered:
    """The values of all controls: first those of decoding, then those of each method in turn."""
    if len(values) != num_controls():
        raise ValueError(f"there are {num_controls()} controls, got {len(values)} values")
    left = iter(values)
    every = {"": controls(), **controls_of_methods()}
    found = {
        name: {control.name: value for control, value in zip(each, islice(left, len(each)))}
        for name, each in every.items()
    }
    return Entered(found.pop(""), found)


def num_controls() -> int:
    """Of a setting."""
    return len(controls()) + sum(map(len, controls_of_methods().values()))
