"""Where the value of each option of a run comes from."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llada_plugins.engine.engine import Engine
from llada_plugins.files.json_files import read_json
from llada_plugins.models.llada_config import token_ids

DEFAULT = "default"
GENERATION = "generation_config.json"


def option_origins(engine: Engine, told: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Value and origin of every option of an engine.

    told: where explicit options stand, by name, as far as the harness knows; elsewhere they
    are "given". Of options of requests see `of_requests`.
    """
    asked = engine.asked
    config, of_method = asdict(engine.config), asdict(engine.method_options)
    effective = {**asdict(engine.common), **config, **of_method}
    effective["gen_length"] = engine.given.get("gen_length")
    by_preset = asked.preset_part({**config, **engine.given})
    by_method = engine.prepared.defaults(engine.given)
    given = {*engine.given, *asked.explicit}
    found = {}
    for name, value in effective.items():
        if name in by_preset:
            origin = f"preset {asked.config.preset}"
        elif name in given:
            origin = told.get(name, "given")
        elif name in by_method:
            origin = f"default of {engine.method}"
        elif name in engine.by_model:
            origin = "the model's attention"
        else:
            origin = DEFAULT
        found[name] = {"value": value, "from": origin}
    return found


def of_requests(
    engine: Engine, samplers: Mapping[str, Sequence[Mapping[str, Any]]], on_line: Collection[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """By task, the options in which its requests differ from the engine's, with their origin.

    samplers: of each task. on_line: names that --gen_kwargs has.
    """
    common = {**asdict(engine.common), "gen_length": engine.given.get("gen_length")}
    return {
        task: {
            name: {
                "value": [each[name] for each in several] if len(several) > 1 else several[0][name],
                "from": "command line" if name in on_line else "task",
            }
            for name in common
            if any(each[name] != common[name] for each in several)
        }
        for task, several in samplers.items()
    }


def ends(engine: Engine) -> dict[str, list[str]]:
    """The ids that end an answer, each with the files that name it."""
    named = {name: _eos_ids(engine.folder / name) for name in ("config.json", GENERATION)}
    return {
        str(token): [name for name, ids in named.items() if token in ids] or ["tokenizer or family"]
        for token in engine.special.ends
    }


def _eos_ids(path: Path) -> tuple[int, ...]:
    return token_ids(read_json(path).get("eos_token_id")) if path.is_file() else ()


def names_after(argv: Sequence[str], *flags: str) -> set[str]:
    """The names of the NAME=VALUE pairs, or of the JSON object, after a flag of a command line."""
    values: list[str] = []
    for place, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if flag in flags:
            values += [value] if equals else argv[place + 1 :]
            if not equals:  # several words may follow, up to the next flag
                values = list(itertools.takewhile(lambda each: not each.startswith("-"), values))
    return {name for value in values for name in re.findall(r"[\"']?(\w+)[\"']?\s*[=:]", value)}
