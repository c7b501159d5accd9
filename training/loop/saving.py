"""Checkpoints that are complete as soon as they have their name.

Where one cannot be written, one line says so.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import Trainer, trainer_utils
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from llada_plugins.files.json_files import first_line

STATE = "trainer_state.json"
UNFINISHED = ".unfinished"  # folder in which a checkpoint is written before it gets its name


class WholeCheckpoints(Trainer):
    """transformers' Trainer, whose checkpoints are complete as soon as they have their name.

    It does not matter when the process is killed.
    """

    _parent: str | None = None  # folder for checkpoints, in place of the output folder

    @property
    def output(self) -> Path:
        """The output folder."""
        assert self.args.output_dir is not None  # the commands' arguments require it
        return Path(self.args.output_dir)

    def check_weights(self) -> None:
        """Raise FloatingPointError where the weights are not worth saving."""

    def _get_output_dir(self, trial: Any) -> str:
        return self._parent or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint in UNFINISHED, then move it to its place.

        Only after that, what save_total_limit has no room for is removed.
        """
        self.check_weights()
        output, unfinished = self.output, self.output / UNFINISHED
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with writing(name, output):
            self._parent = str(unfinished)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._parent = None
            renamed = name_best_checkpoint(self.state, output)
            if renamed and self.args.should_save:
                self.state.save_to_json(str(unfinished / name / STATE))
            self.accelerator.wait_for_everyone()  # every process has files in it
            if self.args.should_save:
                shutil.rmtree(output / name, ignore_errors=True)
                (unfinished / name).replace(output / name)
                unfinished.rmdir()
                self._remove_oldest(output)

    def _remove_oldest(self, output: Path) -> None:
        """Keep `save_total_limit` checkpoints, among them the last and the best."""
        if not hasattr(trainer_utils, "rotate_checkpoints"):  # transformers 5.0 and before
            rotate = getattr(self, "_rotate_checkpoints")  # noqa: B009  # newer ones have none
            rotate(output_dir=str(output))
            return
        trainer_utils.rotate_checkpoints(
            output_dir=str(output),
            save_total_limit=self.args.save_total_limit,
            best_model_checkpoint=self.state.best_model_checkpoint,
        )

    def _run_epoch(self, *arguments: Any, **options: Any) -> None:
        """An epoch, or nothing where no update is left.

        transformers 5.23, which resumes from a last checkpoint inside an epoch, would
        make one more.
        """
        if not self._is_done():
            super()._run_epoch(*arguments, **options)

    def get_batch_samples(self, *arguments: Any, **options: Any) -> tuple[list[Any], Any]:
        """No batch where no update is left: transformers 5.0 and before have no `_run_epoch`."""
        if self._is_done():
            return [], None
        return super().get_batch_samples(*arguments, **options)

    def _is_done(self) -> bool:
        done = self.state.global_step >= self.state.max_steps
        self.control.should_training_stop |= done
        return done

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model alone."""
        if _internal_call:  # by _save_checkpoint and others, which tell of errors themselves
            return super().save_model(output_dir, _internal_call)
        self.check_weights()
        with writing("the model", self.output):
            return super().save_model(output_dir)


def name_best_checkpoint(state: TrainerState, output: Path) -> bool:
    """Name the place to which the state's best checkpoint will move, if it is in UNFINISHED.

    Returns whether it was.
    """
    if state.best_model_checkpoint is None:
        return False
    best = Path(state.best_model_checkpoint)
    if best.parent.name != UNFINISHED:
        return False
    state.best_model_checkpoint = str(output / best.name)
    return True


@contextmanager
def writing(what: str, output: Path) -> Iterator[None]:
    """Turn what libraries raise on a full disk into one OSError line that names what is kept.

    Removes what was begun.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # the last two from torch.save and save_file
        shutil.rmtree(output / UNFINISHED, ignore_errors=True)
        last = get_last_checkpoint(str(output)) if output.is_dir() else None
        kept = "there is no checkpoint to continue from"
        if last:
            kept = f"{last} is whole: make room, then continue with --resume"
        raise OSError(
            f"{what} could not be written to {output} ({first_line(error)}); {kept}"
        ) from error
