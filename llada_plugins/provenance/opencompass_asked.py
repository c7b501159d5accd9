"""What the entry of a data set in an OpenCompass config asks of a model, as plain values.

It is what answers depend on beside the model: the template, the examples, the inferencer, the
rows' own options. A run that goes on holds it against what it began with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .state import differences

# of an entry: its name, what judges answers, and rows that are told apart elsewhere
NOT_OF_ANSWERS = ("abbr", "eval_cfg", "k")
OF_ROWS = ("test_range",)
# of an inferencer: what the task puts there, and how much is asked at once
OF_TASK = (
    *("model", "batch_size", "max_seq_len", "save_every"),
    *("dump_res_length", "dump_only_message_path"),
)
OF_MODEL = ("max_out_len", "min_out_len")  # of its entry, where the inferencer has none
SHOWN = 80  # characters of a longer text are its digest


def asked_of(dataset: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a data set's entry, asked of the model of another entry."""
    infer = dict(dataset["infer_cfg"])
    inferencer = dict(infer["inferencer"])
    for name in OF_MODEL:
        if inferencer.get(name) is None:
            inferencer[name] = model.get(name)
    infer["inferencer"] = _without(inferencer, OF_TASK)
    kept = _without(dataset, NOT_OF_ANSWERS)
    kept["reader_cfg"] = _without(dataset["reader_cfg"], OF_ROWS)
    found = _plain({**kept, "infer_cfg": infer})
    assert isinstance(found, dict)
    return found


def asked_otherwise(
    parts: Iterable[Mapping[str, Any]], name: str, now: Mapping[str, Any]
) -> list[str]:
    """How a data set's settings differ from those in a manifest's parts, a line each.

    name: of the whole data set. A manifest of an earlier version does not say them.
    """
    known = {part["data"]: part["asked"] for part in parts if "asked" in part}
    return differences(known.get(name, now), now)


def _without(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _plain(value: Any) -> Any:
    """Nested mappings of plain values; of a list by place, of a class its name alone.

    A class has its own path in a process, and the one it was imported by in a config.
    """
    if isinstance(value, Mapping):
        return {
            str(name): _class_name(each) if name == "type" else _plain(each)
            for name, each in value.items()
            if each is not None
        }
    if isinstance(value, (list, tuple)):
        return {str(place): _plain(each) for place, each in enumerate(value)}
    if isinstance(value, (bool, int, float)):
        return value
    return _text(value if isinstance(value, str) else _class_name(value))


def _class_name(kind: Any) -> str:
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", type(kind).__name__)
    return name.rpartition(".")[2]


def _text(string: str) -> str:
    """The text on one line, of a long one a digest."""
    if len(string) > SHOWN:
        digest = hashlib.sha256(string.encode()).hexdigest()[:12]
        return f"{len(string)} characters ({digest})"
    return string.replace("\n", "\\n")
