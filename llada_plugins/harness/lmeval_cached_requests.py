"""Requests that lm-eval takes from its own file (`--cache_requests`), held against the run.

lm-eval finds them by task, shots, system instruction, whether there are chats, and the
tokenizer's name. So the name given here tells chat templates apart. `--gen_kwargs` are in no
name: requests keep those of the run that wrote the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance

from llada_plugins.engine.engine import Engine
from llada_plugins.provenance.manifest import template_digest

from .lmeval_manifest import evaluation


def tokenizer_name(engine: Engine) -> str:
    """By which lm-eval files requests: the tokenizer, and the template of its chats."""
    name = engine.tokenizer.name_or_path.replace("/", "__")
    digest = template_digest(engine)
    return name if digest is None else f"{name}__{digest[:12]}"


def check_cached(requests: Sequence[Instance]) -> None:
    """Raise ValueError where requests from the file have other options than --gen_kwargs says."""
    run = evaluation()
    given: Mapping[str, Any] = run.get("gen_kwargs") or {}
    if not run.get("cache_requests") or not given:
        return
    for request in requests:
        own = request.args[1]
        for name, value in given.items():
            if own.get(name) != value:
                raise ValueError(
                    f"--cache_requests: the requests of {request.task_name} were written with "
                    f"{name}={own.get(name)!r}, and --gen_kwargs says {value!r}: give "
                    "--cache_requests refresh"
                )
