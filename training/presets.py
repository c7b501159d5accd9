"""Models trained from scratch by name: shape, data and hyper-parameters; every flag of the command line still overrides them.

sudoku4: the tiny model shipped in llada_plugins/tiny/sudoku4. 4x4 sudoku, byte-level tokens, 0.85 M parameters.
  reproduces  no paper's table; a converged backbone for the decoding, UPS, ALA and PRM comparisons on CPU
  command     python -m training.sft --preset sudoku4 --output_dir outputs/sudoku4
  cost        1000 updates of 64: 99 s on two idle cores with bf16 (168 CPU-seconds). On busy cores take --num_threads 1 (134 CPU-seconds):
              two threads then wait for each other, and other rounding gives another, equally valid model
  scores      greedy low-confidence decoding, one block, held-out puzzles, any valid completion counts:
              steps                            4     6     8     12    16    8 (random order)
              the shipped weights, n = 500    .588  .724  .772  .908  .992  .632
              the shipped weights, n = 2000   .565  .716  .745  .912  .986  .611
              --num_threads 1, n = 2000       .517  .697  .730  .870  .969  .509
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llada_plugins.tasks import sudoku

Pairs = list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A model from scratch. model: fields of LLaDAConfig but the vocabulary's; arguments: defaults of the trainer's flags."""

    model: dict[str, Any]
    pairs: Callable[[], tuple[Pairs, Pairs]]        # (prompt, answer) texts to train on, to evaluate on
    append_eos: bool
    arguments: dict[str, Any]


def _sudoku_pairs() -> tuple[Pairs, Pairs]:
    return list(sudoku.problems("train", 60_000)), list(sudoku.problems("test", sudoku.DEFAULT_NUM_TEST))


PRESETS = {
    "sudoku4": Preset(
        model=dict(d_model=128, n_heads=4, n_layers=4, mlp_hidden_size=336, max_sequence_length=4096, rope_theta=1e4,
                   rms_norm_eps=1e-5, weight_tying=False, include_bias=False, include_qkv_bias=False, rope_full_precision=True),
        pairs=_sudoku_pairs,
        append_eos=False,        # every answer has 16 digits
        arguments=dict(max_steps=1000, per_device_train_batch_size=64, learning_rate=2e-3, warmup_steps=100, weight_decay=0.01,
                       adam_beta2=0.98, bf16=True, use_cpu=True, num_threads=2, seed=0, per_device_eval_batch_size=500,
                       logging_steps=50, eval_strategy="steps", eval_steps=250, save_strategy="no"),
    ),
}
