"""What an installation lacks, and what to do about it: one check after the other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

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

from .doctor_harnesses import check_lm_eval, check_opencompass
from .finding import FAIL, NOTE, OK, Finding

if TYPE_CHECKING:
    import torch
    from packaging.requirements import Requirement


def check_installation() -> Iterator[Finding]:
    """Version and place, Python, and the files that the build step puts there."""
    package = ours()
    home = Path(__file__).parents[1]
    if package is None:
        text = f"{home} is imported, but not installed: no harness finds it"
        yield Finding(FAIL, "llada-plugins", text, f"pip install -e {home.parent}")
        return
    yield Finding(OK, "llada-plugins", f"{package.version} in {home}")
    yield _python(package.metadata["Requires-Python"])
    try:
        yield Finding(OK, "configs", str(shipped("configs")))
    except FileNotFoundError as error:
        yield Finding(FAIL, "configs", str(error), again(package))


def _python(allowed: str) -> Finding:
    from packaging.specifiers import SpecifierSet

    python = sys.version.split()[0]
    if SpecifierSet(allowed).contains(python, prereleases=True):
        return Finding(OK, "Python", f"{python} ({sys.executable})")
    remedy = "make an environment with another Python"
    return Finding(FAIL, "Python", f"{python}, but {allowed} is needed", remedy)


def check_requirements() -> Iterator[Finding]:
    """What the package itself cannot do without."""
    for requirement in requirements(None):
        if not satisfied(requirement):
            version = installed(requirement.name) or "not installed"
            text = f"{version}, needed is {requirement}"
            yield Finding(FAIL, requirement.name, text, f"pip install '{requirement}'")


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
    pinned = f"pip install -c {shipped('constraints.txt')} 'llada-plugins[…]'"
    yield Finding(NOTE, "versions", f"{same}; others: {told}", f"if something fails: {pinned}")


def check_conflicts() -> Iterator[Finding]:
    """Packages that break one another and that pip does not report."""
    if (major("pyarrow") or 0) >= 26 and (major("numpy") or 2) < 2:
        arrow, numpy = installed("pyarrow"), installed("numpy")
        text = f"{arrow} needs NumPy 2 when it is imported, and NumPy is {numpy}"
        yield Finding(FAIL, "pyarrow", text, "pip install 'pyarrow<26'")
    engine, lite = installed("mmengine"), installed("mmengine-lite")
    if engine and lite:
        pin = tested().get("mmengine-lite", lite)
        text = f"{engine} lies over the files of mmengine-lite {lite}, which OpenCompass needs"
        remedy = (
            "pip uninstall -y mmengine opencv-python; pip install --force-reinstall --no-deps "
            f"mmengine-lite=={pin}; pip install 'numpy<2'"
        )
        yield Finding(FAIL, "mmengine", text, remedy)


def check_hardware() -> Iterator[Finding]:
    """Where models run by default, in which dtype, and whether torch.compile could work."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library in it does not load
        text = f"{installed('torch')} cannot be imported: {error}"
        remedy = "pip install --force-reinstall torch, the build for this machine"
        yield Finding(FAIL, "torch", text, remedy)
        return
    from llada_plugins.models.placement import pick_device, pick_dtype

    device = pick_device("auto")
    dtype = str(pick_dtype("auto", device)).removeprefix("torch.")
    runs = f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads"
    yield Finding(OK, "device", f"{device.type} ({_gpu_name(device)}), models are {dtype}; {runs}")
    yield _compiler(device)


def _gpu_name(device: torch.device) -> str:
    """The GPU and its memory, in words."""
    import torch

    if device.type != "cuda":
        return "no GPU"
    memory = torch.cuda.get_device_properties(device).total_memory / 1e9
    return f"{torch.cuda.get_device_name(device)}, {memory:.0f} GB"


def _compiler(device: torch.device) -> Finding:
    """Whether there is what torch.compile compiles with."""
    from llada_plugins.models.compiling import cpp_compiler, lacking

    lack = lacking(device)
    if lack is not None:
        remedy = f"{lack.remedy}, or leave compile=on and --torch_compile out"
        return Finding(NOTE, "torch.compile", f"not available: {lack.what}", remedy)
    parts = ["triton"] if device.type == "cuda" else []
    return Finding(OK, "torch.compile", f"can work: {', '.join([*parts, str(cpp_compiler())])}")


def check_extras() -> Iterator[Finding]:
    """Which optional packages are there, and whether in a version that we can use."""
    for extra in extras():
        wanted = list(requirements(extra))
        told = ", ".join(map(_told, wanted))
        if all(map(satisfied, wanted)):
            yield Finding(OK, f"[{extra}]", told)
        else:
            remedy = f"if needed: pip install 'llada-plugins[{extra}]'"
            yield Finding(NOTE, f"[{extra}]", told, remedy)


def _told(requirement: Requirement) -> str:
    version = installed(requirement.name)
    if version is None:
        return f"{requirement.name} absent"
    needed = "" if satisfied(requirement) else f" (needs {requirement.specifier})"
    return f"{requirement.name} {version}{needed}"


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
            text = f"could not be looked at: {error!r}"
            yield Finding(FAIL, subject, text, "see the lines above; pip check")
