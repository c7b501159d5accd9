"""Public data sets as training rows: a publisher's own format to the JSONL that training reads.

    python -m training.convert --format gsm8k --input train.jsonl --output gsm8k.jsonl

Rows are {"prompt": text, "completion": text}, or {"messages": [{"role", "content"}]}
where the input has dialogues and, with --chat, everywhere. Messages are trained on as
the chat template renders them, prompt and completion as they are. Reads files already
on disk (JSONL, a JSON array, one JSON object, or a folder of such) and downloads
nothing.

A row that does not fit is skipped, reported by file and line (of an array: row, from 1)
with the reason, and counted; --strict ends at the first one and leaves no output. So is
a row with a key that would change what is learned and that nobody reads (row_keys.py
says which). An answer marked "weight": 0, "train": false or "loss": false is written
with "weight": 0: later turns follow it, and it is not learned.

A new format is a function and a row of FORMATS. Formats, their sources and their files:

    sharegpt           any file in its form          conversations, chosen of preference pairs
    messages           OpenAI, any file in its form  messages
    prompt_completion  TRL and others                prompt -> completion, no other columns
    alpaca             tatsu-lab/stanford_alpaca     instruction, blank line, input -> output
                       alpaca_data.json
    s1k                simplescaling/s1K-1.1         problem -> solution
    math               hendrycks/math, MATH/train    problem -> solution
    math500            HuggingFaceH4/MATH-500        problem -> solution
                       test.jsonl
    gsm8k              openai/grade-school-math      question -> answer, <<…>> and #### kept
                       train.jsonl
    opc                OpenCoder-LLM/opc-sft-stage2  instruction -> output
                       SUBSET.jsonl

Hub sets come as parquet; `datasets` writes JSONL:

    from datasets import load_dataset
    rows = load_dataset("OpenCoder-LLM/opc-sft-stage2", "SUBSET", split="train")
    rows.to_json("SUBSET.jsonl")

with SUBSET one of educational_instruct (easy, stable), evol_instruct (harder) and
mceval_instruct (closest to question answering).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from llada_plugins.files.jsonl import write_rows
from llada_plugins.options.command_line import FlagParser
from training.data.formats import FORMATS, convert


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = FlagParser(
        prog="python -m training.convert",
        description="Public data as training rows.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--format", required=True, choices=sorted(FORMATS), help="whose format the input has"
    )
    parser.add_argument(
        "--input", required=True, type=Path, help="JSONL file, JSON array, or folder of such"
    )
    parser.add_argument(
        "--output", required=True, type=Path, help="JSONL file to write; must not exist"
    )
    parser.add_argument(
        "--chat", action="store_true", help="write messages for the chat template in every format"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="end at the first row that does not fit instead of skipping it",
    )
    try:
        options = parser.parse_args(argv)
        if options.output.exists():
            raise ValueError(f"--output {options.output} exists: give another name")
        rows, skipped = convert(
            options.input, options.format, chat=options.chat, strict=options.strict
        )
        write_rows(rows, options.output)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    for skip in skipped:
        print(f"skipped {skip.place}: {skip.reason}", file=sys.stderr)
    print(
        f"{options.output}: {len(rows)} rows of {len(rows) + len(skipped)}, {len(skipped)} skipped"
    )


if __name__ == "__main__":
    main()
