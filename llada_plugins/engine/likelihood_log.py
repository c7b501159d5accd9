"""The file that likelihood_log names: a line of JSON for each likelihood."""

from __future__ import annotations

import json
import math

from llada_plugins.likelihood.estimate import LogLikelihood


def append(path: str, context: str, answer: str, num_tokens: int, estimate: LogLikelihood) -> None:
    """Add the line of one likelihood; num_tokens: of the answer.

    One unbuffered write, so that processes may share the file.
    """
    line = {"context": context, "answer": answer, "num_tokens": num_tokens, **estimate._asdict()}
    del line["overlong"]  # error() has it, where there is something to say
    line.update(estimate.error())
    if math.isinf(estimate.value):
        line["value"] = None  # JSON has no infinity
    with open(path, "ab", buffering=0) as file:
        file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
