"""The file that likelihood_log names: a line of JSON for each likelihood."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llada_plugins.likelihood.estimate import LogLikelihood
from llada_plugins.models import text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def append(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    pair: tuple[Sequence[int], Sequence[int]],
    estimate: LogLikelihood,
) -> None:
    """Add the line of one likelihood; pair: the tokens of context and answer.

    One unbuffered write, so that processes may share the file.
    """
    context, answer = (text.decode(tokenizer, ids, ()) for ids in pair)
    told = {"context": context, "answer": answer, "num_tokens": len(pair[1])}
    line = {**told, **estimate._asdict()}
    del line["overlong"]  # error() has it, where there is something to say
    line.update(estimate.error())
    if math.isinf(estimate.value):
        line["value"] = None  # JSON has no infinity
    with open(path, "ab", buffering=0) as file:
        file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
