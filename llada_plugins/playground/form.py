"""The options of decoding as controls of a form, made from the fields that declare them."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, Literal, NamedTuple

from llada_plugins.engine.engine import Engine
from llada_plugins.options.fields import coerce
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.settings.table import all_presets, find

# stand above the others, which are folded away
MAIN = (
    "gen_length",
    "steps",
    "block_length",
    "temperature",
    "threshold",
    "confidence_source",
    "cache",
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
def controls() -> tuple[Control, ...]:
    """Every option of decoding, those of MAIN first."""
    kinds = typing.get_type_hints(SamplerConfig)
    found = [
        Control(field.name, field.metadata["help"], *_form(kinds[field.name]))
        for field in fields(SamplerConfig)
    ]
    places = {name: place for place, name in enumerate(MAIN)}
    return tuple(sorted(found, key=lambda control: places.get(control.name, len(MAIN))))


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


def shown(sampler: SamplerConfig) -> dict[str, Value]:
    """What each control says of this sampler."""
    values = asdict(sampler)
    return {control.name: _entered(control, values[control.name]) for control in controls()}


def _entered(control: Control, value: Any) -> Value:
    if control.kind == "check":
        return bool(value)
    if value is None:
        return ABSENT
    return str(value).lower() if isinstance(value, bool) else str(value)


def given(engine: Engine, entered: Mapping[str, Value]) -> dict[str, Any]:
    """The options that a person has changed, as values of their types.

    The others are left to the engine, since what stands for them may depend on those that
    are given. ValueError on a value that its option does not take.
    """
    untouched = shown(engine.sampler)
    changed = {
        name: None if value == ABSENT else value
        for name, value in entered.items()
        if value != untouched[name]
    }
    return coerce(SamplerConfig, changed)


def preset_names(pretrained: str | None) -> list[str]:
    """The published settings, those of this checkpoint first."""
    presets = all_presets().values()
    return [each.name for each in sorted(presets, key=lambda each: each.pretrained != pretrained)]


def with_preset(engine: Engine, name: str) -> dict[str, Value]:
    """What the controls say where a published setting's options of decoding hold.

    ValueError where they do not fit the engine's model.
    """
    options = coerce(SamplerConfig, find(name).options)
    return shown(engine.sampler_for(options))


def paired(values: Sequence[Value]) -> dict[str, Value]:
    """The values of all controls, in their order, by the names of their options."""
    return {control.name: value for control, value in zip(controls(), values, strict=True)}
