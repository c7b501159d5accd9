"""Options of a process reward model, and how its family completes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llada_plugins.models.placement import DTYPES
from llada_plugins.models.quantization import Quantize, check_quantize
from llada_plugins.options.fields import Options, arg

from .families import FAMILIES, FamilyName


@dataclass(frozen=True, kw_only=True)
class PRMConfig(Options):
    """Which process reward model judges the steps, and how it runs."""

    prm: str | None = arg(None, "folder or hub id of the process reward model; safetensors only")
    prm_family: FamilyName | None = arg(
        None,
        "how it marks steps (default: as its files say; a causal LM's do not, so math_shepherd or "
        "chat must be named)",
    )
    prm_separator: str | None = arg(
        None,
        "token_classification: text after every step (default: step_separator in the PRM's "
        "config.json); in double quotes it is "
        'JSON: "\\n\\n" is two newlines, without quotes it is four characters',
    )
    prm_marker: str | None = arg(
        None, "token after every step (default: <extra_0> for qwen, ки for math_shepherd)"
    )
    prm_positive: str | None = arg(
        None, "math_shepherd, chat: token that means a right step (default: +)"
    )
    prm_negative: str | None = arg(
        None, "math_shepherd, chat: token that means a wrong step (default: -)"
    )
    prm_system: str | None = arg(None, "qwen: system prompt (default: the model card's)")
    prm_dtype: str = arg(
        "auto",
        "auto (bfloat16 on a GPU, else float32), float32, bfloat16 or float16; the head is always "
        "float32",
    )
    prm_quantize: Quantize | None = arg(
        None,
        "as quantize: int8, int8_dynamic, fp8 or nf4 for its Linears, head and embedding apart; "
        "packed: a GPTQ checkpoint's stay packed",
    )
    prm_batch_size: int = arg(
        16, "solutions per forward of the PRM; does not change their scores beyond rounding"
    )
    prm_max_length: int | None = arg(
        None, "longest solution, question included, in tokens of the PRM (default: its context)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prm_batch_size", "prm_max_length"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.prm_dtype not in ("auto", *DTYPES):
            raise ValueError(
                f"prm_dtype must be auto or one of {', '.join(DTYPES)}, got {self.prm_dtype!r}"
            )
        check_quantize(self.prm_quantize)


def family_options(
    config: PRMConfig, family: FamilyName, raw: Mapping[str, Any], folder: Path
) -> dict[str, str]:
    """The options of this family, filled with its defaults; raw: the PRM's config.json.

    Raises ValueError on an option of another family, which would have no effect.
    """
    own = FAMILIES[family].options
    every = {name for row in FAMILIES.values() for name in row.options}
    for name in sorted(every - own.keys()):
        if getattr(config, name) is not None:
            raise ValueError(
                f"{name} has no effect on a PRM of the {family} family, whose options are "
                f"{', '.join(own)}: leave it out"
            )
    options: dict[str, str] = {}
    for name, default in own.items():
        given = getattr(config, name)
        if name == "prm_separator":
            options[name] = _separator(given, raw, folder)
            continue
        assert default is not None
        options[name] = default if given is None else given
    if "prm_positive" in options and options["prm_positive"] == options["prm_negative"]:
        raise ValueError(
            f"prm_positive and prm_negative are both {options['prm_positive']!r}: they must differ"
        )
    return options


def _separator(given: str | None, raw: Mapping[str, Any], folder: Path) -> str:
    """The text after every step, as asked for, or as the PRM's config.json says.

    Never guessed: TRL's default is a newline, the published 0.2 models' scripts passed a
    backslash and an n, twice.
    """
    if given is not None:
        return _unquoted(given)
    separator = raw.get("step_separator")
    if not isinstance(separator, str):
        raise ValueError(
            f"{folder}: its config.json has no step_separator: pass the text that stood "
            'after every step in training, such as prm_separator="\\n" (in double quotes a '
            "newline, without them a backslash and an n)"
        )
    return separator


def _unquoted(separator: str) -> str:
    """A JSON string's value; anything else as it is.

    Some versions of the harnesses' command lines leave its quotes on.
    """
    if len(separator) < 2 or not separator[0] == separator[-1] == '"':
        return separator
    try:
        value: str = json.loads(separator)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"prm_separator={separator} is in double quotes but is not a JSON string: {error}"
        ) from None
    return value
