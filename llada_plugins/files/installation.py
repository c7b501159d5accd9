"""What pip installed here: versions, our own requirements and extras, the versions tested together.

Standard library, and `packaging`, which transformers brings, where requirements are read.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from llada_plugins._lm_eval_hook import DISTRIBUTION

PACKAGE = Path(__file__).parents[1]

COLLECTING = ("all", "dev")  # extras that are made of others
# rooms whose code decides what an answer is, with the doors of the harnesses
ANSWERING = (
    "*_models.py",
    "diffusion/**/*.py",
    "engine/**/*.py",
    "harness/**/*.py",
    "likelihood/**/*.py",
    "methods/**/*.py",
    "models/**/*.py",
    "rewards/**/*.py",
    "sampling/**/*.py",
    "tasks/**/*.py",
)
# whose versions decide it as well, to the last bit of a probability
DECIDING = ("torch", "transformers", "tokenizers")


def installed(name: str) -> str | None:
    """The version of a distribution; None where it is absent."""
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return None


@functools.cache
def made_by() -> dict[str, str | None]:
    """By which code answers are made here: ours, and the packages that they rest on.

    A clone's version stays while its code changes, so ours is told by its files too.
    """
    found = hashlib.sha256()
    for path in sorted({path for names in ANSWERING for path in PACKAGE.glob(names)}):
        found.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    own = f"{installed(DISTRIBUTION)}, code {found.hexdigest()[:8]}"
    return {DISTRIBUTION: own, **{name: installed(name) for name in DECIDING}}


def major(name: str) -> int | None:
    """The first number of a distribution's version; None where it is absent."""
    version = installed(name)
    return int(version.split(".")[0]) if version else None


def ours() -> Distribution | None:
    """This package as pip knows it; None for a folder that was never installed."""
    try:
        return distribution(DISTRIBUTION)
    except PackageNotFoundError:
        return None


def again(package: Distribution) -> str:
    """The command that repeats the installation; -v shows what a failing build step says."""
    source = json.loads(package.read_text("direct_url.json") or "{}")
    if source.get("dir_info", {}).get("editable"):
        return f"pip install -v --no-deps -e {source['url'].removeprefix('file://')}"
    return f"pip install --force-reinstall --no-deps {source.get('url', DISTRIBUTION)}"


def requirements(extra: str | None) -> Iterator[Any]:
    """Our own requirements, or those of an extra."""
    from packaging.requirements import Requirement

    for requirement in map(Requirement, distribution(DISTRIBUTION).requires or []):
        marker = requirement.marker
        if extra is None and (marker is None or marker.evaluate({"extra": ""})):
            yield requirement
        if (
            extra
            and marker
            and marker.evaluate({"extra": extra})
            and not marker.evaluate({"extra": ""})
        ):
            yield requirement


def satisfied(requirement: Any) -> bool:
    """Is there such a package, in a version that the requirement allows?"""
    version = installed(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def extras() -> list[str]:
    """The extras that name packages of others, as setup.cfg has them."""
    named = distribution(DISTRIBUTION).metadata.get_all("Provides-Extra") or []
    return [extra for extra in named if extra not in COLLECTING]


def tested() -> dict[str, str]:
    """Package -> the version that constraints.txt pins for this Python."""
    from packaging.requirements import Requirement

    lines = shipped("constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        key(pin.name): next(iter(pin.specifier)).version
        for pin in pins
        if pin.marker is None or pin.marker.evaluate()
    }


def key(name: str) -> str:
    """A distribution's name as pip compares it."""
    return name.lower().replace("_", "-").replace(".", "-")


def shipped(name: str) -> Path:
    """A file or folder of the repository's root that the wheel carries too.

    name: `configs` or `constraints.txt`. A wheel has it in `_shipped`, put there by the
    build step (_ship.py); a clone and an editable install have it beside the package.
    Raises FileNotFoundError where an installation has neither.
    """
    clone = PACKAGE.resolve().parent  # a strict editable install is links into the clone
    places = [PACKAGE / "_shipped" / name]
    if (clone / "_ship.py").is_file():  # else it is site-packages, and not ours alone
        places.append(clone / name)
    for place in places:
        if place.exists():
            return place
    raise FileNotFoundError(
        f"{places[0]}: no such file or folder, so this installation is not "
        "whole: pip install --force-reinstall --no-deps llada-plugins"
    )
