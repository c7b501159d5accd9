"""What an unmasking-policy stream knows and what the sampler does with it, on a set of problems.

    python -m llada_plugins.ups_report --output outputs/ups_report
    python -m llada_plugins.ups_report --pretrained DIR --ups DIR --data FILE.jsonl --output DIR

The first takes the tiny model on 4x4 sudoku, and a CPU minute.

Detection: how well sigmoid(h) tells clean tokens from incorrect ones (AUC, calibration,
confusion matrix), beside the token's own probability on the same tokens, under three
kinds of incorrect token. Decoding: the mask count after every step, forwards, latency,
and tokens that were wrong, masked again and corrected, for every source in the same
sampler. Writes ups_report.json, trajectories.txt and four PNG plots, all or nothing.
Accuracy comparisons with intervals are benchmarks/ablation.py's business.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llada_plugins.options.command_line import run_command
from llada_plugins.reports.ups import run, table
from llada_plugins.reports.ups_problems import ReportOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(
        ReportOptions,
        "python -m llada_plugins.ups_report",
        lambda options: table(run(options)),
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
