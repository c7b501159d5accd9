"""How accuracy falls as more tokens are decoded in a forward: a sweep on a harness' task.

    python -m llada_plugins.frontier --task sudoku4 --include_path configs/lmeval \\
        --sweep threshold=0.5..0.99 --output outputs/frontier
    python -m llada_plugins.frontier --task gsm8k --lm_eval "--apply_chat_template" \\
        --pretrained DIR --gen_length 256 --block_length 32 --sweep threshold=0.6,0.8,0.9,0.95 \\
        --sweep cache=none,dual --jobs 2 --output DIR
    python -m llada_plugins.frontier --config configs/eval_llada.py \\
        --entry LLaDA-tiny-gen_length=16-steps=16 --sweep threshold=0.5..0.99 --output DIR

Each value is a run of stock lm_eval, or with --config of stock opencompass, with its files in
a folder of its own; the same command goes on where a killed one stopped. Several --sweep make
a grid: a curve for each value of the later ones. Every option of the model is a flag of the
same name. Prints a table and the AUP score of each curve, and writes frontier.json, points.csv,
table.md, frontier.png and leaderboard.yaml.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llada_plugins.engine.flags import read_flags, run_program
from llada_plugins.harness.sweeps import harness_of
from llada_plugins.reports.frontier import FrontierConfig, run

USAGE = (
    "python -m llada_plugins.frontier (--task NAME | --config FILE) --sweep OPTION=FIRST..LAST "
    "--output DIR [--sweep …] [--OPTION VALUE ...]"
)


def main(argv: Sequence[str] | None = None) -> int:
    """The user's mistakes and failed runs end it with one line and status 1; done runs stay."""

    def work() -> None:
        config, options = read_flags(FrontierConfig, argv, usage=USAGE, description=__doc__)
        print(run(config, options, harness_of(config, options)))

    return run_program(
        work, interrupted="stopped; finished runs stay: run the same command to go on"
    )


if __name__ == "__main__":
    sys.exit(main())
