"""What an installation lacks, and what to do about it: one check after the other."""

from __future__ import annotations

import importlib.util
import json
import os
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
from llada_plugins.files.installation import (
    again,
    extras,
    installed,
    key,
    major,
    ours,
    requirements,
    satisfied,
    shipped,
    tested,
)

OK, NOTE, FAIL = "ok", "note", "FAIL"
START_UP_FILE = "llada_plugins_lm_eval.pth"
FINDER = "LLaDAPluginsFinder"  # what that file adds to sys.meta_path
PATIENCE = 600  # seconds that a harness may take to start on a busy machine
Ask = Callable[[str], "dict[str, Any] | str"]  # a harness -> its answer, or what failed


class Finding(NamedTuple):
    """One line of the report, and what to do about it."""

    state: str
    subject: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.state:<5}{self.subject:<16}{self.text}"
        return f"{line}\n{'':21}do: {self.remedy}" if self.remedy else line


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
        f"import json; from llada_plugins.reports import doctor; answer = doctor.ask_{harness}(); "
        "print(json.dumps(answer))"
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


def check_installation() -> Iterator[Finding]:
    """Version and place, Python, and the files that the build step puts there."""
    package = ours()
    home = Path(__file__).parents[1]
    if package is None:
        yield Finding(
            FAIL,
            "llada-plugins",
            f"{home} is imported, but not installed: no harness finds it",
            f"pip install -e {home.parent}",
        )
        return
    yield Finding(OK, "llada-plugins", f"{package.version} in {home}")
    allowed = package.metadata["Requires-Python"]
    python = sys.version.split()[0]
    from packaging.specifiers import SpecifierSet

    if SpecifierSet(allowed).contains(python, prereleases=True):
        yield Finding(OK, "Python", f"{python} ({sys.executable})")
    else:
        yield Finding(
            FAIL,
            "Python",
            f"{python}, but {allowed} is needed",
            "make an environment with another Python",
        )
    try:
        yield Finding(OK, "configs", str(shipped("configs")))
    except FileNotFoundError as error:
        yield Finding(FAIL, "configs", str(error), again(package))


def check_requirements() -> Iterator[Finding]:
    """What the package itself cannot do without."""
    for requirement in requirements(None):
        if not satisfied(requirement):
            version = installed(requirement.name) or "not installed"
            yield Finding(
                FAIL,
                requirement.name,
                f"{version}, needed is {requirement}",
                f"pip install '{requirement}'",
            )


def check_versions() -> Iterator[Finding]:
    """Versions beside those with which everything was run together."""
    pins = tested()
    named = [*requirements(None), *(each for extra in extras() for each in requirements(extra))]
    found = ((key(each.name), installed(each.name)) for each in named)
    here = {name: version for name, version in found if version}
    # torch's local part says for which GPU it was built
    other = {
        name: version
        for name, version in here.items()
        if name in pins and version.split("+")[0] != pins[name]
    }
    same = f"{len(here) - len(other)} of {len(here)} packages as tested"
    if not other:
        yield Finding(OK, "versions", same)
        return
    told = ", ".join(f"{name} {version} (tested {pins[name]})" for name, version in other.items())
    yield Finding(
        NOTE,
        "versions",
        f"{same}; others: {told}",
        f"if something fails: pip install -c {shipped('constraints.txt')} 'llada-plugins[…]'",
    )


def check_conflicts() -> Iterator[Finding]:
    """Packages that break one another and that pip does not report."""
    if (major("pyarrow") or 0) >= 26 and (major("numpy") or 2) < 2:
        yield Finding(
            FAIL,
            "pyarrow",
            f"{installed('pyarrow')} needs NumPy 2 when it is imported, "
            f"and NumPy is {installed('numpy')}",
            "pip install 'pyarrow<26'",
        )
    lite = installed("mmengine-lite")
    if installed("mmengine") and lite:
        pin = tested().get("mmengine-lite", lite)
        yield Finding(
            FAIL,
            "mmengine",
            f"{installed('mmengine')} lies over the files of "
            f"mmengine-lite {lite}, which OpenCompass needs",
            "pip uninstall -y mmengine opencv-python; pip install --force-reinstall "
            f"--no-deps mmengine-lite=={pin}; pip install 'numpy<2'",
        )


def check_hardware() -> Iterator[Finding]:
    """Where models run by default, in which dtype, and whether torch.compile could work."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library in it does not load
        yield Finding(
            FAIL,
            "torch",
            f"{installed('torch')} cannot be imported: {error}",
            "pip install --force-reinstall torch, the build for this machine",
        )
        return
    from llada_plugins.models.placement import pick_device, pick_dtype

    device = pick_device("auto")
    dtype = str(pick_dtype("auto", device)).removeprefix("torch.")
    name = "no GPU"
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 1e9
        name = f"{torch.cuda.get_device_name(device)}, {memory:.0f} GB"
    yield Finding(
        OK,
        "device",
        f"{device.type} ({name}), models are {dtype}; torch "
        f"{torch.__version__}, {torch.get_num_threads()} CPU threads",
    )
    on_gpu = device.type == "cuda"
    compiler = next(
        filter(None, map(shutil.which, (os.environ.get("CXX") or "g++", "clang++"))), None
    )
    if on_gpu and importlib.util.find_spec("triton") is None:
        yield Finding(
            NOTE,
            "torch.compile",
            "not available: triton is missing",
            "pip install triton, or leave --torch_compile out",
        )
    elif compiler is None:
        yield Finding(
            NOTE,
            "torch.compile",
            "not available: no C++ compiler on the PATH",
            "install g++, or leave --torch_compile out",
        )
    else:
        yield Finding(OK, "torch.compile", f"can work: {'triton, ' * on_gpu}{compiler}")


def check_extras() -> Iterator[Finding]:
    """Which optional packages are there, and whether in a version that we can use."""
    for extra in extras():
        wanted = list(requirements(extra))
        remedy = f"if needed: pip install 'llada-plugins[{extra}]'"
        whole = all(map(satisfied, wanted))
        yield Finding(
            OK if whole else NOTE,
            f"[{extra}]",
            ", ".join(map(_told, wanted)),
            "" if whole else remedy,
        )


def _told(requirement: Any) -> str:
    version = installed(requirement.name)
    if version is None:
        return f"{requirement.name} absent"
    needed = "" if satisfied(requirement) else f" (needs {requirement.specifier})"
    return f"{requirement.name} {version}{needed}"


def check_lm_eval(ask: Ask = asked) -> Iterator[Finding]:
    """Does the stock lm_eval of this environment know our models?"""
    package = ours()
    if package is None or installed("lm_eval") is None:
        return
    wanted = {each.name: each.value for each in package.entry_points.select(group=GROUP)}
    answer = ask("lm_eval")
    subject = "lm_eval"
    if isinstance(answer, str):
        yield Finding(
            FAIL,
            subject,
            f"cannot be imported: {answer}",
            "see the lines above; pip install 'llada-plugins[lmeval]'",
        )
        return
    taken = {name: value for name, value in answer["models"].items() if value != wanted[name]}
    if taken:
        yield Finding(
            FAIL,
            subject,
            f"has another package's class under our name: {taken}",
            "uninstall that package here, or give each an environment",
        )
    if answer["errors"]:
        text = f"{installed('lm_eval')} does not find {', '.join(answer['errors'])}"
        reason, remedy = _unfound(package, answer)
        yield Finding(FAIL, subject, f"{text}: {reason}", remedy)
    if not taken and not answer["errors"]:
        yield Finding(OK, subject, f"{installed('lm_eval')} finds {', '.join(wanted)}")
    yield from _other_command("lm_eval")


def _unfound(package: Distribution, answer: dict[str, Any]) -> tuple[str, str]:
    """Why lm_eval does not know our models, and what to do."""
    place = Path(str(package.locate_file(START_UP_FILE)))
    meanwhile = "llada-eval in place of lm_eval"
    if not answer["reads_entry_points"] and not place.is_file():
        return (
            f"{place} is missing, so the build step of this installation did not run",
            f"{again(package)}; until then {meanwhile}",
        )
    started = any(type(finder).__name__ == FINDER for finder in sys.meta_path)
    if not answer["reads_entry_points"] and not started:
        return f"Python does not process {place}: its folder is on PYTHONPATH only", meanwhile
    return (
        next(iter(answer["errors"].values())),
        "see the lines above; pip install 'llada-plugins[lmeval]'",
    )


def check_opencompass(ask: Ask = asked) -> Iterator[Finding]:
    """Does the stock OpenCompass of this environment build the model of a shipped config?"""
    if ours() is None or installed("opencompass") is None:
        return
    answer = ask("opencompass")
    if isinstance(answer, str):
        yield Finding(
            FAIL,
            "opencompass",
            f"{installed('opencompass')} does not build our models: {answer}",
            "see the lines above; pip install 'llada-plugins[opencompass]'",
        )
        return
    yield Finding(OK, "opencompass", f"{installed('opencompass')} builds {answer['built']}")
    yield from _other_command("opencompass")


def _other_command(name: str) -> Iterator[Finding]:
    """A note where the shell would start another environment's command, or none."""
    mine = Path(sysconfig.get_path("scripts")) / name
    first = shutil.which(name)
    if first is None or Path(first).resolve() != mine.resolve():
        yield Finding(
            NOTE,
            name,
            f"the shell takes {first or 'none'}, not this environment's",
            f"activate the environment, or call {mine}",
        )


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_installation,
    check_requirements,
    check_versions,
    check_conflicts,
    check_hardware,
    check_extras,
    check_lm_eval,
    check_opencompass,
)


def findings() -> Iterator[Finding]:
    """Every line of the report, as it is found."""
    for check in CHECKS:
        try:
            yield from check()
        except Exception as error:  # a broken environment may break a check anywhere
            subject = check.__name__.removeprefix("check_")
            yield Finding(
                FAIL,
                subject,
                f"could not be looked at: {error!r}",
                "see the lines above; pip check",
            )
