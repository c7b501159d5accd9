"""Options: frozen dataclasses that one reader fills, whatever gives the values.

Those are model_args, gen_kwargs, OpenCompass dicts and command lines.
Every option is declared once, as a field with its help text; unknown names, wrong types
and values out of range are refused with one line that says what was given, what is
allowed and what to do.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import operator
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")


class Options:
    """Base of option classes that extend others: the rules of all of them hold.

    A class with rules calls super().__post_init__() first, then states its own.
    """

    def __post_init__(self) -> None:
        """Every value is of its declared type; no other rules."""
        settle(self)


# options of other wrappers, and what they are called here or, in OpenCompass, there
PUBLISHED: dict[str, str] = {
    # LLaDA: eval_llada.py, its OpenCompass
    "model_path": "pretrained path",
    "cfg": "cfg_scale",
    "is_check_greedy": "greedy_check",
    "batch_size_": "batch_size",
    "gen_blocksize": "block_length",
    "gen_steps": "steps",
    "diff_logits_eos_inf": "logits_eos_inf",
    "diff_confidence_eos_eot_inf": "confidence_eos_eot_inf",
    # Fast-dLLM
    "use_cache": "cache=prefix",
    "dual_cache": "cache=dual",
    # dLLM-Cache
    "is_feature_cache": "cache=partial",
    # dllm, Dream, SDAR, dInfer
    "max_new_tokens": "gen_length",
    "block_size": "block_length",
    "mask_token_id": "mask_id",
    "model_name_or_path": "pretrained path",
    "diffusion_steps": "steps",
    "denoising_steps": "steps",
    "num_steps": "steps",
    "alg": "confidence_source",
    "remasking_strategy": "remasking",
    "confidence_threshold": "threshold",
    # names of the harnesses and of transformers
    "pretrained": "path",
    "path": "pretrained",
    "model_name": "pretrained path",
    "max_gen_toks": "gen_length",
    "max_tokens": "gen_length",
    "max_out_len": "gen_length",
    "max_length": "max_seq_len",
    "max_seq_len": "max_length",
    "max_seq_length": "max_length max_seq_len",
    "max_sequence_length": "max_length max_seq_len",
    "torch_dtype": "dtype",
    "tokenizer_path": "tokenizer",
    "tokenizer_name": "tokenizer",
    "guidance_scale": "cfg_scale",
    "load_in_8bit": "quantize=int8",
    "load_in_4bit": "quantize=nf4",
    "peft_path": "peft",
    "lora": "peft",
    "lora_path": "peft",
    "adapter": "peft",
    "do_sample": "temperature",
    # vLLM's and OpenAI's, OpenCompass'
    "stop": "until stop_words",
    "stop_sequences": "until stop_words",
    "stopping_criteria": "until stop_words",
}


def arg(default: Any = dataclasses.MISSING, help: str = "") -> Any:
    """A dataclass field with its help text, which states the unit.

    A field without default is required.
    """
    return dataclasses.field(default=default, metadata={"help": help})


def names(*classes: type) -> list[str]:
    """Every option name of the given dataclasses, in order of declaration."""
    return [field.name for cls in classes for field in dataclasses.fields(cls)]


def nearest(name: str, known: typing.Iterable[str]) -> str | None:
    """The known name that another wrapper's stands for, else the one spelt most like it."""
    known = list(known)
    published = [own for own in PUBLISHED.get(name, "").split() if own.partition("=")[0] in known]
    return next(iter(published or difflib.get_close_matches(name, known, 1)), None)


def reject_unknown(
    given: typing.Iterable[str],
    known: typing.Iterable[str],
    what: str = "option",
    listed: str | None = None,
    elsewhere: typing.Iterable[str] = (),
) -> None:
    """Raise ValueError for names that are not known, each with what it may mean.

    listed: where to read what is known, for names too many for a line (default: all of them).
    elsewhere: names that are no options here but may be meant.
    """
    known = sorted(known)
    unknown = [name for name in given if name not in known]
    if not unknown:
        return
    hints = []
    for name in unknown:
        near = nearest(name, [*known, *elsewhere])
        hints.append(f"{name!r}" + (f" (did you mean {near!r}?)" if near else ""))
    raise ValueError(
        f"unknown {what}{'s' * (len(unknown) > 1)} {', '.join(hints)}; "
        f"{listed or 'known: ' + ', '.join(known)}"
    )


def with_origins(error: ValueError, origins: Mapping[str, Mapping[str, Any]]) -> ValueError:
    """The error with the value and the origin of every option that its message names.

    origins: what stands where, by the words that say where; of several values the first
    counts.
    """
    message, told = str(error), []
    named = set(re.findall(r"\w+", message))
    for where, values in origins.items():
        told += [
            f"{name}={value!r} from {where}" for name, value in values.items() if name in named
        ]
        named -= set(values)
    return ValueError(f"{message} [{'; '.join(told)}]" if told else message)


def build(cls: type[Config], given: Mapping[str, Any], base: Config | None = None) -> Config:
    """An instance of `cls` from those of `given` that are its fields.

    The rest is as in `base` (default: the declared defaults). Raises ValueError on a
    value of the wrong type, or one that the class itself refuses.
    """
    values = coerce(cls, given)
    return dataclasses.replace(base, **values) if base is not None else cls(**values)


def coerce(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `given` that are fields of `cls`, as values of the declared types."""
    kinds = _kinds(cls)
    return {name: _coerce(name, given[name], kinds[name]) for name in names(cls) if name in given}


def settle(config: object) -> None:
    """Make each value of a frozen instance one of its declared type; for its __post_init__.

    So a class made in Python reads what command lines read: NumPy's numbers are taken, and
    ValueError is raised on True for a number, a misspelt name, or a flag that is none. A float
    is left to the class's rules of ranges, which name NaN as well.
    """
    cls: type = type(config)
    kinds, given = _kinds(cls), vars(config)
    ranged = [
        name
        for name, value in given.items()
        if type(value) is float and float in (kinds[name], *typing.get_args(kinds[name]))
    ]
    others = {name: value for name, value in given.items() if name not in ranged}
    for name, value in coerce(cls, others).items():
        object.__setattr__(config, name, value)


_kinds = functools.cache(typing.get_type_hints)


def split(given: Mapping[str, Any], *classes: type, what: str = "option") -> list[Any]:
    """One instance of each class from a flat mapping; other names are refused."""
    reject_unknown(given, names(*classes), what)
    return [build(cls, given) for cls in classes]


def _coerce(name: str, value: Any, kind: Any) -> Any:
    """`value` as the declared type.

    Command lines and harnesses hand over '8', 8.0 or 'true' where 8 or True is meant.
    """
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _any_of(name, value, parts)
    if origin is typing.Literal:
        if value in parts:
            return value
        if isinstance(value, bool) and {"on", "off"} <= set(parts):  # YAML reads them as such
            return "on" if value else "off"
        raise ValueError(f"{name} must be one of {', '.join(map(repr, parts))}, got {value!r}")
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else value
        return tuple(_coerce(name, item, parts[0]) for item in items)
    return _scalar(name, value, kind)


def as_flag(name: str, value: Any) -> bool:
    """The value of an option that is true or false, however a command line spells it."""
    flag: bool = _coerce(name, value, bool)
    return flag


def _any_of(name: str, value: Any, kinds: Sequence[Any]) -> Any:
    """`value` as the first of some types that takes it; the last one's error where none does."""
    absent = value is None or (isinstance(value, str) and value.lower() == "none")
    if absent and type(None) in kinds:
        return None
    *others, last = [kind for kind in kinds if kind is not type(None)]
    for kind in others:
        with suppress(ValueError):
            return _coerce(name, value, kind)
    return _coerce(name, value, last)


def _scalar(name: str, value: Any, kind: Any) -> Any:
    """`value` as a number, a flag or a string; of any other type, as it is."""
    if kind not in SCALARS:
        return value
    words, read = SCALARS[kind]
    try:
        return read(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} must be {words}, got {value!r}") from None


# --- readers of plain values: what cannot be read is a ValueError, TypeError or
# --- OverflowError, for which `_scalar` finds the words


def _flag(value: Any) -> bool:
    word = str(value).lower()
    if word not in FLAGS:
        raise ValueError
    return FLAGS[word]


def _number(value: Any) -> float:
    number = float(value)
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError
    return number


def _whole_number(value: Any) -> int:
    with suppress(TypeError):  # of NumPy and torch too; beyond 2^53 a float is not exact
        if not isinstance(value, bool):
            return operator.index(value)
    number = _number(value)
    if int(number) != number:
        raise ValueError
    exact = isinstance(value, str) and value.strip().lstrip("+-").isdigit()
    return int(value) if exact else int(number)


def _string(value: Any) -> str:
    if value is None or isinstance(value, bool | dict | list | tuple):
        raise ValueError
    return str(value)


FLAGS = {"true": True, "false": False, "1": True, "0": False}
SCALARS: dict[Any, tuple[str, Callable[[Any], Any]]] = {
    int: ("a whole number", _whole_number),
    float: ("a number", _number),
    bool: ("true or false", _flag),
    str: ("a string", _string),
}
