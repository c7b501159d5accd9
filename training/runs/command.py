"""A training command as a row: its name, its options, its presets, how it prepares a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

from training.loop.objectives import Objective
from training.loop.throughput import Throughput
from training.loop.trainer import Load, Measure, Save

from .arguments import RunArguments
from .jobs import Job
from .presets import Preset, PretrainPreset, PRMPreset


@dataclass(frozen=True, kw_only=True)
class Run:
    """What training needs of a command, ready to start.

    save, load: of a whole model where they are None. measure, callbacks, throughput: see
    loop/trainer.py. finish: what the main process does last, given the metrics of the last
    evaluation (none without data for it).
    """

    job: Job[Any, Any]
    objective: Objective
    save: Save | None = None
    load: Load | None = None
    measure: Measure | None = None
    callbacks: Sequence[TrainerCallback] = ()
    throughput: Throughput | None = None
    finish: Callable[[Mapping[str, float]], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command `python -m training.NAME`.

    options: the dataclass of its own flags. prepare: the run, from an instance of that
    dataclass, the arguments and the words of the command line; it raises ValueError, OSError
    or ImportError on what the user gave. start: what a user has to give, for the usage line.
    """

    name: str
    options: type
    presets: Mapping[str, Preset | PRMPreset | PretrainPreset]
    prepare: Callable[[Any, RunArguments, Sequence[str]], Run]
    start: str = "(--preset NAME | --model DIR --data FILE.jsonl)"

    @property
    def words(self) -> list[str]:
        """The command line without flags."""
        return ["python", "-m", f"training.{self.name}"]

    @property
    def usage(self) -> str:
        """The usage line of --help."""
        words = " ".join(self.words)
        return f"{words} {self.start} --output_dir DIR [flags; --help lists them]"
