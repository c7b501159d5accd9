"""Every option of the models as one page of Markdown, from the dataclasses that declare them."""

from __future__ import annotations

import types
import typing
from collections.abc import Collection, Iterator
from dataclasses import MISSING, Field, fields
from typing import Any, NamedTuple

from llada_plugins.engine.config import LikelihoodOptions, ModelOptions
from llada_plugins.engine.record_options import RecordOptions
from llada_plugins.methods.ala import ALAOptions
from llada_plugins.methods.prm import PRMOptions
from llada_plugins.methods.ups import UPSOptions
from llada_plugins.options.fields import PUBLISHED, names
from llada_plugins.rewards.review_config import ReviewConfig
from llada_plugins.sampling.config import SamplerConfig

KINDS = {int: "whole number", float: "number", bool: "true, false", str: "text"}
ABSENT = "–"

BEFORE = """\
# Options

This page lists every option of the models. It is written by `python -m llada_plugins.reference`
from the classes that declare the options, so it is complete and current.

An option has the same name everywhere: in lm-eval's `--model_args`, `--gen_kwargs` and a task's
`generation_kwargs`, in an OpenCompass model dict, as a flag of `python -m llada_plugins.evaluate`
and `python -m llada_plugins.chat`, and in Python. [Evaluate](evaluate.md#which-value-wins) says
which value wins where several are given.

- A task's `generation_kwargs` and `--gen_kwargs` take the options of [decoding](#decoding) only.
- lm-eval takes `batch_size` and `device` as its own `--batch_size` and `--device`.
- OpenCompass calls `pretrained` `path`, and `max_length` `max_seq_len`; `batch_size` is a key of
  the model's entry there.
- In the harnesses `early_stop` is true unless it is given.
- A default of – means that the option is off, or that its text says what happens without it.
"""

PUBLISHED_BEFORE = """\
## Names of other wrappers

Published wrappers call some options otherwise. An unknown name is an error; where it is one of
these, the error names ours.

| name there | name here |
|---|---|
"""


class Group(NamedTuple):
    """A table of the page."""

    title: str
    text: str
    options: type
    names: Collection[str]


# tables of all options of a class
WHOLE: tuple[tuple[str, str, type], ...] = (
    (
        "Model and place",
        "Which checkpoint, how it is read, and how much runs at once.",
        ModelOptions,
    ),
    (
        "Decoding",
        "How an answer is filled. [Decoding](decoding.md) explains them together.",
        SamplerConfig,
    ),
    (
        "Likelihood",
        "How log-probabilities are estimated. See [Likelihood](likelihood.md).",
        LikelihoodOptions,
    ),
    (
        "Record",
        "What is written down of how answers come about. See [See it](view.md).",
        RecordOptions,
    ),
    ("Learned remasking", "Of `llada_ups`. See [its page](methods/ups.md).", UPSOptions),
    ("Routed seeds", "Of `llada_ala`. See [its page](methods/ala.md).", ALAOptions),
)


def groups() -> list[Group]:
    """The tables, in their order; together they hold every option of every method once."""
    review = names(ReviewConfig)
    judge = [name for name in names(PRMOptions) if name not in review]
    of_judge = "Of `llada_prm`: who judges, and what it reads. See [its page](methods/prm.md)."
    of_review = "Of `llada_prm`: what the verdicts are used for."
    return [
        *(Group(title, text, options, names(options)) for title, text, options in WHOLE),
        Group("Process reward model", of_judge, PRMOptions, judge),
        Group("Review", of_review, PRMOptions, review),
    ]


def page() -> str:
    """The text of docs/options.md."""
    return "\n".join(
        [BEFORE, *(table(group) for group in groups()), PUBLISHED_BEFORE + published()]
    )


def table(group: Group) -> str:
    """A heading and a row for each of the group's options."""
    kinds = typing.get_type_hints(group.options)
    declared = {field.name: field for field in fields(group.options)}
    rows = "".join(row(declared[name], kinds[name]) for name in group.names)
    head = "| option | values | default | meaning |\n|---|---|---|---|\n"
    return f"## {group.title}\n\n{group.text}\n\n{head}{rows}"


def row(field: Field, kind: Any) -> str:
    """One option: its name, what it takes, its default and its help text."""
    taken = ", ".join(dict.fromkeys(values(kind)))
    cells = (f"`{field.name}`", taken, default(field.default), cell(field.metadata["help"]))
    return f"| {' | '.join(cells)} |\n"


def values(kind: Any) -> Iterator[str]:
    """What an option of the declared type takes, in words."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        for each in typing.get_args(kind):
            if each is not type(None):
                yield from values(each)
    elif typing.get_origin(kind) is typing.Literal:
        yield from (f"`{value}`" for value in typing.get_args(kind))
    else:
        yield KINDS[kind]


def default(value: Any) -> str:
    """A default as it is written in model_args."""
    if value is MISSING:
        return "required"
    if value is None:
        return ABSENT
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def cell(text: str) -> str:
    """Text in a table: no character of it is Markdown's."""
    for character, written in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;"), ("*", "&#42;")):
        text = text.replace(character, written)
    return text


def published() -> str:
    """A row for each published name, with ours."""
    return "".join(
        f"| `{name}` | {', '.join(f'`{own}`' for own in ours.split())} |\n"
        for name, ours in PUBLISHED.items()
    )
