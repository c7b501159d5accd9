"""Disks that fill, and disks that cannot be written to."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .runs import Fault, Run, Setting, Skipped, compare, finish, last_line, refused, undisturbed


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A file system in memory; gives what mounts it anew with other options."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise Skipped(f"nothing can be mounted here: {error}") from None
    if done.returncode:
        raise Skipped(f"nothing can be mounted here: {done.stderr.strip()}")

    def remount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)

    try:
        yield remount
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


SIZES = {"lm_eval": "64k", "opencompass": "36k"}  # that answers fill, and what stands before do not


def full_disk(harness: str) -> Callable[[Setting], str]:
    """A disk that fills amid the answers; then room is made, and the command repeated."""

    def fault(setting: Setting) -> str:
        expected = undisturbed(Run(harness, "llada", setting.folder / "whole")).answers
        disk = setting.folder / "disk"
        with small_disk(disk, SIZES[harness]) as remount:
            run = Run(harness, "llada", disk / "run", beside=setting.folder)
            status = finish(run)
            said = last_line(run)
            if not status:
                raise Fault(f"it ends with 0 on a full disk: {said}")
            lines = run.log.read_text(errors="replace").splitlines()
            reasons = [line for line in lines if "No space left" in line or "disk is full" in line]
            if not reasons:
                raise Fault(f"it does not say why: {said}")
            remount("size=64m")
            if status := finish(run):
                raise Fault(f"with room again it ends with {status}: {last_line(run)}")
            compare(run, expected)
        return f"non-zero exit ({reasons[-1][:80]}); with room again all answers are there"

    return fault


def full_disk_of_results(setting: Setting) -> str:
    """A disk on which results find no room, while answers go elsewhere."""
    expected = undisturbed(Run("lm_eval", "llada", setting.folder / "whole")).answers
    with small_disk(setting.folder / "disk", "48k") as remount:
        run = Run("lm_eval", "llada", setting.folder / "run", results=setting.folder / "disk" / "o")
        said = refused(run, "no space left")
        remount("size=64m")
        if status := finish(run):
            raise Fault(f"with room again it ends with {status}: {last_line(run)}")
        compare(run, expected)
    return f"non-zero exit ({said[:90]}); with room again all is there"


def read_only(harness: str) -> Callable[[Setting], str]:
    """An output folder that cannot be written to."""

    def fault(setting: Setting) -> str:
        disk = setting.folder / "disk"
        with small_disk(disk, "1m") as remount:
            remount("ro")
            run = Run(harness, "llada", disk / "run", beside=setting.folder)
            status, said = finish(run), last_line(run)
        if not status:
            raise Fault(f"it ends with 0, and nothing was written: {said}")
        if "read-only" not in said.lower() and "readonly" not in said.lower():
            raise Fault(f"its last line does not say why: {said}")
        return f"non-zero exit ({said[:80]})"

    return fault


FAULTS: dict[str, Callable[[Setting], str]] = {
    "full disk, lm_eval": full_disk("lm_eval"),
    "full disk of results alone, lm_eval": full_disk_of_results,
    "full disk, opencompass": full_disk("opencompass"),
    "read-only output, lm_eval": read_only("lm_eval"),
    "read-only output, opencompass": read_only("opencompass"),
}
