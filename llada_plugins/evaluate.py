"""Answer the questions of a file and grade them with math-verify, as LLaDA-R3's command does.

    python -m llada_plugins.evaluate --data FILE.csv --output metrics.csv \\
        --model llada_prm --pretrained DIR --prm DIR --steps 128

It writes one row of metrics per question. FILE is a .csv, .jsonl or .json with the columns
question (or problem) and answer. Every option of the model is a flag of the same name:
--model NAME --help lists them. The same command goes on where a killed run stopped. lm-eval
and OpenCompass run the same questions through configs/; this command is for what they do
not write: forwards, calls of the process reward model (PRM), seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llada_plugins.engine.flags import MISTAKES, read_flags, run_program
from llada_plugins.engine.question_files import ANSWER_LENGTH, EvaluateConfig, evaluate
from llada_plugins.rewards.step_scorer import ScoreError

USAGE = (
    "python -m llada_plugins.evaluate --data FILE --output FILE.csv [--model NAME] "
    "[--OPTION VALUE ...]"
)


def read_command_line(argv: Sequence[str] | None = None) -> tuple[EvaluateConfig, dict[str, str]]:
    """The command's own configuration, and the model's options as given.

    Raises ValueError on a flag that the model lacks.
    """
    return read_flags(
        EvaluateConfig,
        argv,
        usage=USAGE,
        description=__doc__,
        defaults={"gen_length": ANSWER_LENGTH},
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The user's mistakes end it with one line and status 1; finished rows are kept always."""
    return run_program(
        lambda: print(evaluate(*read_command_line(argv))),
        interrupted="stopped; finished questions are kept: run the same command to go on",
        mistakes=(*MISTAKES, ScoreError),
    )


if __name__ == "__main__":
    sys.exit(main())
