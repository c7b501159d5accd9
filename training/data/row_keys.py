"""What the keys of a public row or turn say of what is learned.

They are honoured, without meaning, or refused by name.

The keys are those of OpenAI's fine-tuning form and ShareGPT (weight), Axolotl (train,
train_on_turn), ms-swift and XTuner (loss), LLaMA-Factory (system, history, tools,
images, label), TRL and transformers' chat templates (tools, tool_calls,
reasoning_content, thinking, name, documents, chat_template_kwargs). A null or an empty
value says nothing, whatever its key: tables fill what a row lacks with them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

TURN_MARKS = ("weight", "train", "train_on_turn", "loss")  # 0 or false: read, not learned
ROW_MARKS = ("weight", "train", "sample_weight", "loss_weight")
UNDESIRED = ("label", "kto_tag")  # false beside an answer that is not to be given
# Keys of a turn that say nothing of what is learned. Any other is refused: nobody knows
# them all.
NOTES = frozenset(
    (
        "id",
        "uuid",
        "message_id",
        "parent_id",
        "turn_id",
        "turn_identifier",
        "index",
        "idx",
        "hash",
        "timestamp",
        "time",
        "date",
        "created_at",
        "create_time",
        "language",
        "lang",
        "country",
        "state",
        "model",
        "source",
        "dataset",
        "domain",
        "category",
        "topic",
        "toxic",
        "redacted",
        "header",
        "hashed_ip",
        "markdown",
        "token_count",
        "num_tokens",
        "metadata",
        "meta",
    )
)
# Keys of a row that change the prompt or the answer. Others are columns of a data set,
# without end.
ROW_KEYS = (
    "system",
    "system_prompt",
    "history",
    "chosen",
    "tools",
    "functions",
    "documents",
    "chat_template",
    "chat_template_kwargs",
    "reasoning_content",
    "reasoning",
    "thinking",
    "train_detail",
    "loss_mask",
    "image",
    "images",
    "video",
    "videos",
    "audio",
    "audios",
)
KNOWN = frozenset((*ROW_KEYS, *ROW_MARKS, *UNDESIRED))


def silent(value: Any) -> bool:
    """Is it null, or an empty text, list or object?"""
    return value is None or (isinstance(value, (str, list, dict)) and not value)


def refused(key: str) -> str:
    """Why a key is not read, and what to do."""
    return (
        f"{key!r} is not supported, and what it says may change what is learned: write that into "
        "the text, or leave the key out"
    )


def check_turn(turn: Mapping[str, Any], own: Collection[str], place: str) -> None:
    """Raise ValueError on a key of a turn beside `own` that says something that nobody reads."""
    for key, value in turn.items():
        if key not in own and key not in TURN_MARKS and key not in NOTES and not silent(value):
            raise ValueError(f"{place}: {refused(key)}")


def check_row(row: Mapping[str, Any], honoured: Collection[str] = ()) -> None:
    """Raise ValueError on a row that is not to be learned, or that says what nobody reads.

    honoured: keys that the caller reads.
    """
    for key in ROW_KEYS:
        if key not in honoured and not silent(row.get(key)):
            raise ValueError(refused(key))
    if learned(row, ROW_MARKS, "the row") is False:
        raise ValueError("the row is marked not to be learned: leave it out")
    for key in UNDESIRED:
        if row.get(key) is False:
            raise ValueError(
                f"{key!r} is false, so the answer is not to be learned: leave the row out"
            )


def own(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without keys that would change what is learned and say nothing.

    ValueError as above.
    """
    check_row(row)
    return {key: value for key, value in row.items() if key not in KNOWN}


def learned(found: Mapping[str, Any], marks: Collection[str], place: str) -> bool | None:
    """What the marks of a turn or row say, None where it has none.

    ValueError where they say neither.
    """
    said = {key: found[key] for key in marks if found.get(key) is not None}
    for key, value in said.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise ValueError(
                f"{place}: {key!r} must be 0 or 1, or false or true, got {value!r}: an "
                "answer is learned or it is not"
            )
    if len(set(map(bool, said.values()))) > 1:
        raise ValueError(
            f"{place}: {' and '.join(map(repr, said))} contradict each other: give one"
        )
    return bool(next(iter(said.values()))) if said else None
