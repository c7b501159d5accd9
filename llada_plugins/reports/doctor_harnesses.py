"""Do the harnesses find our models? Each is asked in a Python of its own."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any, NamedTuple

from llada_plugins._lm_eval_hook import DISTRIBUTION, GROUP
from llada_plugins.files.installation import again, installed, ours, shipped

from .finding import FAIL, NOTE, OK, Finding

START_UP_FILE = "llada_plugins_lm_eval.pth"
FINDER = "LLaDAPluginsFinder"  # what that file adds to sys.meta_path
PATIENCE = 600  # seconds that a harness may take to start on a busy machine
Ask = Callable[[str], "dict[str, Any] | str"]  # a harness -> its answer, or what failed


def ask_lm_eval() -> dict[str, Any]:
    """What the stock registry has under our names, and whether it reads entry points itself.

    The classes as in entry points, "module:Class"; for a name without one, the error.
    """
    from lm_eval.api import registry

    models, errors = {}, {}
    for each in distribution(DISTRIBUTION).entry_points.select(group=GROUP):
        try:
            found = registry.get_model(each.name)
            models[each.name] = f"{found.__module__}:{found.__qualname__}"
        except Exception as error:  # whatever the harness or an import in it raises
            errors[each.name] = repr(error)
    return {
        "models": models,
        "errors": errors,
        "reads_entry_points": hasattr(registry, "load_plugins"),
    }


def ask_opencompass() -> dict[str, str]:
    """The class of the first model of configs/eval_llada.py, which is built as a task does."""
    from mmengine.config import Config
    from opencompass.utils import build_model_from_cfg

    # mmengine would turn an ImportError in it into "not in the registry"
    importlib.import_module("llada_plugins.opencompass_models")
    parsed = Config.fromfile(shipped("configs") / "eval_llada.py", format_python_code=False)
    parsed.dump("dumped.py")
    model = build_model_from_cfg(Config.fromfile("dumped.py", format_python_code=False).models[0])
    return {"built": f"{type(model).__module__}.{type(model).__qualname__}"}


def asked(harness: str) -> dict[str, Any] | str:
    """The answer of ask_<harness>, or the last line of what went wrong.

    The Python starts in an empty folder: of a clone, it would find what is not installed.
    """
    code = (
        "import json; from llada_plugins.reports import doctor_harnesses; "
        f"print(json.dumps(doctor_harnesses.ask_{harness}()))"
    )
    with tempfile.TemporaryDirectory() as folder:
        try:
            finished = subprocess.run(
                [sys.executable, "-c", code],
                cwd=folder,
                text=True,
                capture_output=True,
                timeout=PATIENCE,
            )
        except subprocess.TimeoutExpired:
            return f"no answer within {PATIENCE} s"
    if finished.returncode == 0:
        return json.loads(finished.stdout.splitlines()[-1])
    said = finished.stderr.strip().splitlines()
    return said[-1] if said else f"exit status {finished.returncode}"


def check_lm_eval(ask: Ask = asked) -> Iterator[Finding]:
    """Does the stock lm_eval of this environment know our models?"""
    package = ours()
    if package is None or installed("lm_eval") is None:
        return
    answer = ask("lm_eval")
    if isinstance(answer, str):
        remedy = "see the lines above; pip install 'llada-plugins[lmeval]'"
        yield Finding(FAIL, "lm_eval", f"cannot be imported: {answer}", remedy)
        return
    yield from _found_models(package, answer)
    yield from _other_command("lm_eval")


def _found_models(package: Distribution, answer: dict[str, Any]) -> Iterator[Finding]:
    """What lm_eval has under our names."""
    wanted = {each.name: each.value for each in package.entry_points.select(group=GROUP)}
    taken = {name: value for name, value in answer["models"].items() if value != wanted[name]}
    version = installed("lm_eval")
    if taken:
        text = f"has another package's class under our name: {taken}"
        remedy = "uninstall that package here, or give each an environment"
        yield Finding(FAIL, "lm_eval", text, remedy)
    if answer["errors"]:
        text = f"{version} does not find {', '.join(answer['errors'])}"
        reason, remedy = _unfound(package, answer)
        yield Finding(FAIL, "lm_eval", f"{text}: {reason}", remedy)
    if not taken and not answer["errors"]:
        yield Finding(OK, "lm_eval", f"{version} finds {', '.join(wanted)}")


class Unfound(NamedTuple):
    """Why lm_eval does not know our models, and what to do."""

    reason: str
    remedy: str


def _unfound(package: Distribution, answer: dict[str, Any]) -> Unfound:
    place = Path(str(package.locate_file(START_UP_FILE)))
    meanwhile = "llada-eval in place of lm_eval"
    if not answer["reads_entry_points"] and not place.is_file():
        reason = f"{place} is missing, so the build step of this installation did not run"
        return Unfound(reason, f"{again(package)}; until then {meanwhile}")
    started = any(type(finder).__name__ == FINDER for finder in sys.meta_path)
    if not answer["reads_entry_points"] and not started:
        reason = f"Python does not process {place}: its folder is on PYTHONPATH only"
        return Unfound(reason, meanwhile)
    first = next(iter(answer["errors"].values()))
    return Unfound(first, "see the lines above; pip install 'llada-plugins[lmeval]'")


def check_opencompass(ask: Ask = asked) -> Iterator[Finding]:
    """Does the stock OpenCompass of this environment build the model of a shipped config?"""
    version = installed("opencompass")
    if ours() is None or version is None:
        return
    answer = ask("opencompass")
    if isinstance(answer, str):
        text = f"{version} does not build our models: {answer}"
        remedy = "see the lines above; pip install 'llada-plugins[opencompass]'"
        yield Finding(FAIL, "opencompass", text, remedy)
        return
    yield Finding(OK, "opencompass", f"{version} builds {answer['built']}")
    yield from _other_command("opencompass")


def _other_command(name: str) -> Iterator[Finding]:
    """A note where the shell would start another environment's command, or none."""
    mine = Path(sysconfig.get_path("scripts")) / name
    first = shutil.which(name)
    if first is None or Path(first).resolve() != mine.resolve():
        text = f"the shell takes {first or 'none'}, not this environment's"
        yield Finding(NOTE, name, text, f"activate the environment, or call {mine}")
