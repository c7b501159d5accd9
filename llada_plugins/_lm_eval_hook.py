"""Make lm-eval 0.4.10 to 0.4.13 find this package's models by name.

Later versions read the `lm_eval.models` entry points of setup.cfg themselves
(lm-evaluation-harness PR #4013); on those nothing here does anything. On the earlier
ones `llada_plugins_lm_eval.pth`, a line that Python runs at start-up, puts a finder in
front of `sys.meta_path`; it answers for one module only, `lm_eval.models`, and asks
`find` here to have `register` run right after that module: lm-eval fills its registry
there only while it is empty, so a name registered earlier would hide all of lm-eval's
own.

Standard library only: this runs inside other programs' imports.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

logger = logging.getLogger(__name__)

DISTRIBUTION = "llada-plugins"
GROUP = "lm_eval.models"


class Placeholder(str):
    """A "module:Class" string that gives way to another package's class of the same name.

    The line that needs it is `current != target` in Registry.register of
    lm_eval/api/registry.py: where they differ, lm-eval refuses that package's class as
    "already registered". So this string says of every class that it does not differ.
    """

    __hash__ = str.__hash__

    def __ne__(self, other: object) -> bool:
        return False if isinstance(other, type) else str.__ne__(self, other)


def register() -> None:
    """Add this package's model names to lm-eval's registry, without importing the models.

    A name that is taken stays as it is.
    """
    from lm_eval.api import registry

    if hasattr(registry, "load_plugins"):  # lm-eval reads the entry points itself
        return
    from importlib.metadata import distributions

    # another package's broken metadata is never read
    for distribution in distributions(name=DISTRIBUTION):
        for entry_point in distribution.entry_points.select(group=GROUP):
            if entry_point.name not in registry.model_registry:
                registry.model_registry.register(
                    entry_point.name, target=Placeholder(entry_point.value)
                )


def find(
    caller: MetaPathFinder,
    fullname: str,
    path: Sequence[str] | None = None,
    target: ModuleType | None = None,
) -> ModuleSpec | None:
    """The other finders' spec of module `fullname`, which calls `register` after the module.

    caller: the .pth file's finder. A virtual environment runs the line of a .pth file
    twice, so every object of its class is passed over: two that asked each other would
    never end.
    """
    for finder in list(sys.meta_path):
        if type(finder).__name__ == type(caller).__name__ or not hasattr(finder, "find_spec"):
            continue
        spec = finder.find_spec(fullname, path, target)
        if spec is not None:
            break
    else:
        return None
    loader = spec.loader
    assert loader is not None  # a package of files has one
    execute = loader.exec_module

    def execute_and_register(module: ModuleType) -> None:
        execute(module)
        try:
            register()
        except Exception as error:
            # lm-eval with its own models must go on working, whatever is wrong with us
            logger.warning("llada_plugins: lm-eval models not registered: %r", error)

    loader.exec_module = execute_and_register  # type: ignore[method-assign]  # of this module only
    return spec
