"""Options: frozen dataclasses that one reader fills from model_args, gen_kwargs,
OpenCompass dicts and command lines.

Every option is declared once, as a field with its help text; unknown names, wrong types
and values out of range are refused with one line that says what was given, what is
allowed and what to do.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

Config = TypeVar("Config")


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
}


def arg(default: Any = dataclasses.MISSING, help: str = "") -> Any:
    """A dataclass field with its help text, which states the unit; a field without
    default is required.
    """
    return dataclasses.field(default=default, metadata={"help": help})


def names(*classes: type) -> list[str]:
    """Every option name of the given dataclasses, in order of declaration."""
    return [field.name for cls in classes for field in dataclasses.fields(cls)]


def nearest(name: str, known: typing.Iterable[str]) -> str | None:
    """The known name that somebody means by another wrapper's, else the one spelt most like it."""
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
    """Raise ValueError naming those of `given` that are not in `known`, each with what it may mean.

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
    """The error with the value of every option that its message names, and where it comes from.

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
    """An instance of `cls` from those of `given` that are its fields, the rest as in
    `base` (default: the declared defaults).

    Raises ValueError on a value of the wrong type or one that the class itself refuses.
    """
    values = coerce(cls, given)
    return dataclasses.replace(base, **values) if base is not None else cls(**values)


def coerce(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `given` that are fields of `cls`, as values of the declared types."""
    kinds = typing.get_type_hints(cls)
    return {name: _coerce(name, given[name], kinds[name]) for name in names(cls) if name in given}


def split(given: Mapping[str, Any], *classes: type, what: str = "option") -> list[Any]:
    """One instance of each class from a flat mapping; a name that none of them declares
    is refused.
    """
    reject_unknown(given, names(*classes), what)
    return [build(cls, given) for cls in classes]


def _coerce(name: str, value: Any, kind: Any) -> Any:
    """`value` as the declared type: command lines and harnesses hand over '8', 8.0 or
    'true' where 8 or True is meant.
    """
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        options = typing.get_args(kind)
        absent = value is None or (isinstance(value, str) and value.lower() == "none")
        if absent and type(None) in options:
            return None
        kinds = [option for option in options if option is not type(None)]
        for option in kinds:
            try:
                return _coerce(name, value, option)
            except ValueError:
                if option is kinds[-1]:
                    raise
    if typing.get_origin(kind) is typing.Literal:
        allowed = typing.get_args(kind)
        if value not in allowed:
            raise ValueError(
                f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}"
            )
        return value
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        values = value.split(",") if isinstance(value, str) else value
        return tuple(_coerce(name, each, item) for each in values)
    return _scalar(name, value, kind)


def _scalar(name: str, value: Any, kind: type) -> Any:
    wrong = ValueError(f"{name} must be {_KIND_NAMES.get(kind, kind)}, got {value!r}")
    if kind is bool:
        known = {"true": True, "false": False, "1": True, "0": False}
        if isinstance(value, bool) or str(value).lower() in known:
            return known.get(str(value).lower(), value)
        raise wrong
    if kind in (int, float):
        if isinstance(value, bool):
            raise wrong
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise wrong from None
        if not math.isfinite(number):
            raise wrong
        if kind is float:
            return number
        if int(number) != number:
            raise wrong
        return (
            int(value)
            if isinstance(value, (int, str)) and str(value).lstrip("+-").isdigit()
            else int(number)
        )
    if kind is str:
        if value is None or isinstance(value, (bool, dict, list, tuple)):
            raise wrong
        return str(value)
    return value


_KIND_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
