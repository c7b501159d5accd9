"""Public data sets as training rows: one file in the publisher's own format to JSONL rows {"prompt": text, "completion": text}.

    python -m training.convert --format gsm8k --input train.jsonl --output gsm8k.jsonl

Reads a file already on disk, JSONL or one JSON array, and downloads nothing. A row that does not fit is skipped, reported as
FILE:ROW with the reason, and counted; --strict ends at the first one and leaves no output. A new format is a function and a row of
FORMATS. Sources, and the commands for the sets of the plan (hub sets come as parquet; `datasets` writes them as JSONL):

    s1K       simplescaling/s1K-1.1          --format s1k --input s1k.json              problem -> solution
    MATH-500  HuggingFaceH4/MATH-500         --format math500 --input test.jsonl        problem -> solution
    GSM8K     openai/grade-school-math       --format gsm8k --input train.jsonl         question -> answer, <<…>> and #### kept
    OPC       OpenCoder-LLM/opc-sft-stage2   --format opc --input SUBSET.jsonl          instruction -> output
      python -c "from datasets import load_dataset as l; l('OpenCoder-LLM/opc-sft-stage2', 'SUBSET', split='train').to_json('SUBSET.jsonl')"
      with SUBSET one of educational_instruct (easy, stable), evol_instruct (harder), mceval_instruct (closest to question answering)
"""
from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Row(NamedTuple):
    """A training row of text."""

    prompt: str
    completion: str


class Skip(NamedTuple):
    """A row that did not fit."""

    place: str        # FILE:ROW, counted from 1; of JSONL the line
    reason: str


def problem_solution(row: dict[str, Any]) -> Row:
    """s1K and MATH-500: the problem and its worked solution."""
    return Row(_text(row, "problem"), _text(row, "solution"))


def gsm8k(row: dict[str, Any]) -> Row:
    """GSM8K: the question and its answer, calculator marks and the final "#### number" as published."""
    return Row(_text(row, "question"), _text(row, "answer"))


def opc(row: dict[str, Any]) -> Row:
    """OpenCoder's stage-2 instruction sets."""
    return Row(_text(row, "instruction"), _text(row, "output"))


FORMATS: dict[str, Callable[[dict[str, Any]], Row]] = {
    "s1k": problem_solution,
    "math500": problem_solution,
    "gsm8k": gsm8k,
    "opc": opc,
}


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, row) of a file's rows; of a line that is not JSON, the ValueError in the row's place.

    Raises FileNotFoundError, or ValueError for a file that is neither JSONL nor one JSON array.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a JSONL file or a JSON array")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); export parquet as JSONL first") from None
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{error.lineno}: not a JSON array: {error.msg}") from None
        yield from ((f"{path}:{number}", row) for number, row in enumerate(rows, 1))
        return
    for number, line in enumerate(text.split("\n"), 1):        # splitlines would cut at U+2028 inside strings
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line)
            except json.JSONDecodeError as error:
                yield f"{path}:{number}", error


def convert(path: Path, name: str, *, strict: bool = False) -> tuple[list[Row], list[Skip]]:
    """The rows of `path` in format `name`, and those that were skipped; together they are all rows of the file.

    strict: raise ValueError at the first bad row instead of skipping it.
    """
    rows: list[Row] = []
    skipped: list[Skip] = []
    for place, raw in read_rows(path):
        try:
            if isinstance(raw, json.JSONDecodeError):
                raise ValueError(f"not JSON: {raw.msg} at column {raw.colno}")
            if not isinstance(raw, dict):
                raise ValueError(f"expected an object, found {type(raw).__name__}")
            rows.append(FORMATS[name](raw))
        except ValueError as error:
            if strict:
                raise ValueError(f"{place}: {error}") from None
            skipped.append(Skip(place, str(error)))
    if not rows:
        first = f" (first: {skipped[0].place}: {skipped[0].reason})" if skipped else ""
        raise ValueError(f"{path}: no row fits --format {name}{first}")
    return rows, skipped


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write JSONL under another name in the same folder first, so that `path` is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in rows)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.convert", description="Public data as training rows.", allow_abbrev=False)
    parser.add_argument("--format", required=True, choices=sorted(FORMATS), help="whose format the input has")
    parser.add_argument("--input", required=True, type=Path, help="JSONL file or JSON array")
    parser.add_argument("--output", required=True, type=Path, help="JSONL file to write; must not exist")
    parser.add_argument("--strict", action="store_true", help="end at the first row that does not fit instead of skipping it")
    options = parser.parse_args(argv)
    try:
        if options.output.exists():
            raise ValueError(f"--output {options.output} exists: give another name")
        rows, skipped = convert(options.input, options.format, strict=options.strict)
        write_rows(rows, options.output)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    for skip in skipped:
        print(f"skipped {skip.place}: {skip.reason}", file=sys.stderr)
    print(f"{options.output}: {len(rows)} rows of {len(rows) + len(skipped)}, {len(skipped)} skipped")


def _text(row: dict[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        found = f"{type(value).__name__}" if field in row else f"keys {', '.join(sorted(row)) or 'none'}"
        raise ValueError(f"{field!r} must be text, found {found}")
    if not value.strip():
        raise ValueError(f"{field!r} is empty")
    return value


if __name__ == "__main__":
    main()
