"""Distilled students by name: teacher, data and hyper-parameters; every flag overrides them.

None reproduces a paper's table, and none is shipped. Scores are of one seed; docs/tiny-models.md
has three rounds of sudoku4's with three teachers: half the forwards at half a point with drafts.

sudoku4: from the shipped model, on its right canonical answers to 24,000 puzzles.
  command  python -m training.distill --preset sudoku4 --output_dir outputs/sudoku4_distilled
  cost     1500 updates of 64 and the teacher's answers: 440 CPU-seconds
  score    .978 at 3.77 forwards; its teacher 1.000 at 5.73 (one token a forward: .994 and 1.000)
           lm_eval --model llada --tasks sudoku4 --include_path configs/lmeval --batch_size 50
           --model_args pretrained=outputs/sudoku4_distilled --gen_kwargs factor=0.05 (n = 500)
nim: from the shipped model, on its right answers to 6000 positions. It needs 1.1 forwards, so
nothing is left to distil; cost and score are of weights shipped before, trained less well.
  command  python -m training.distill --preset nim --output_dir outputs/nim_distilled
  cost     200 updates of 64: 36 CPU-seconds, and 8 for the teacher's answers
  score    .826 at 2.44 forwards, threshold .99 (n = 1000); its teacher .827 at 2.54
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from llada_plugins.tasks import nim, sudoku

from .presets import Preset, nim_pairs, plan, sudoku_pairs


@dataclass(frozen=True, kw_only=True)
class DistillPreset(Preset):
    """A student that starts from its teacher, with the prompts that the teacher answers."""

    accepts: Callable[[str, str], bool]  # is that answer to that prompt right?


def _plan(steps: int, rate: float, **more: Any) -> dict[str, Any]:
    common = dict(answers="right", teacher_threshold=0.99, teacher_batch=500, bf16=True)
    return plan(steps=steps, rate=rate, warmup=30, every=200, **common, **more)


DISTILL_PRESETS = {
    "sudoku4": DistillPreset(
        model="sudoku4",
        pairs=partial(sudoku_pairs, 24_000, seed=11),
        append_eos=False,
        accepts=sudoku.is_valid,
        arguments=_plan(
            1500,
            1e-3,
            canonical=[0.02, 0.1, 0.3, 1.0],
            last_least_masked=0.5,
            most_masked=1.0,
            complement=False,
            certainty=0.0,
        ),
    ),
    "nim": DistillPreset(
        model="nim",
        pairs=partial(nim_pairs, 6000, seed=11),
        append_eos=False,
        accepts=nim.is_winning,
        arguments=_plan(200, 2e-4, certainty=0.0),
    ),
}
