"""Do two result folders hold the same answers?

    python -m llada_plugins.compare LMEVAL_FOLDER OPENCOMPASS_FOLDER

Each argument is a folder written by `lm_eval --output_path … --log_samples` or by
`opencompass -w …` (the newest sample or prediction file below it is read), or such a
file itself. Answers are matched by prompt. Exit status 1 where they differ.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llada_plugins.reports.answers import read_answers, same_accuracy


def main(arguments: list[str] | None = None) -> int:
    """Print how the answers compare; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m llada_plugins.compare", description=__doc__.splitlines()[0]
    )
    parser.add_argument("first", type=Path, help="result folder or file of either harness")
    parser.add_argument("second", type=Path, help="result folder or file of either harness")
    parsed = parser.parse_args(arguments)
    try:
        first, second = read_answers(parsed.first), read_answers(parsed.second)
    except (FileNotFoundError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    shared = [prompt for prompt in first.texts if prompt in second.texts]
    differing = [prompt for prompt in shared if first.texts[prompt] != second.texts[prompt]]
    alone = len(first.texts.keys() ^ second.texts.keys())
    for run in (first, second):
        print(
            f"{run.path}: {len(run.texts)} answers, accuracy "
            f"{'unknown' if run.accuracy is None else f'{run.accuracy:.4f}'}"
        )
    print(
        f"{len(shared) - len(differing)} answers identical, {len(differing)} different, {alone} "
        "prompts in one run only"
    )
    for prompt in differing[:5]:
        print(f"  {prompt!r}: {first.texts[prompt]!r} / {second.texts[prompt]!r}")
    same = shared and not differing and not alone and same_accuracy(first, second)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
