"""How many directions the states of masked positions span, layer by layer.

    python -m llada_plugins.effective_rank --output outputs/effective_rank
    python -m llada_plugins.effective_rank --pretrained DIR --router DIR --data FILE.jsonl \\
        --output DIR
    python -m llada_plugins.effective_rank --pretrained DIR --prompt_length 64 --output DIR

The first takes the tiny model on 4x4 sudoku, and seconds; the last random ids, for which
no tokenizer is needed. One static mask embedding stands beside a router's seeds.
Each prompt is followed by num_masks masked tokens and nothing else. Their states are
compared for the baseline, a random router that replaces the mask embedding, and the
trained router if there is one. Writes effective_rank.json and effective_rank.png, both
or none. Whether a higher rank helps is another question, which accuracies answer.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llada_plugins.options.command_line import run_command
from llada_plugins.reports.effective_rank import RankOptions, run, table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(
        RankOptions,
        "python -m llada_plugins.effective_rank",
        lambda options: table(run(options)),
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
