"""Whole texts in windows that fit the context, and their likelihoods together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from llada_plugins.engine.engine import Engine
from llada_plugins.likelihood.estimate import LogLikelihood, total


class Windows(NamedTuple):
    """Windows of texts, which together hold every token of them once."""

    pairs: list[tuple[Sequence[int], Sequence[int]]]  # context and answer, as token ids
    owners: list[int]  # the number of the text of each pair


def rolling_windows(
    engine: Engine, strings: Sequence[str], prefix: int | None, longest: int
) -> Windows:
    """Disjoint windows of at most `longest` tokens, each given the last token before it.

    The first window of a text is given `prefix`, which a tokenizer that adds BOS must not
    add to what is scored.
    """
    windows = Windows([], [])
    for number, string in enumerate(strings):
        ids = engine.encode(string)
        begins_with_bos = ids[:1] == [engine.tokenizer.bos_token_id]
        scored = ids[1:] if begins_with_bos else ids
        for window in get_rolling_token_windows(scored, prefix, longest, 1):
            windows.pairs.append(make_disjoint_window(window))
            windows.owners.append(number)
    return windows


def totals(
    owners: Sequence[int], estimates: Iterable[tuple[int, LogLikelihood]]
) -> Iterator[tuple[int, LogLikelihood]]:
    """(number of a text, likelihood of all of it), as the last of its windows comes.

    owners: as in Windows. estimates: of its pairs, by their number, in any order.
    """
    missing = Counter(owners)
    parts: defaultdict[int, list[LogLikelihood]] = defaultdict(list)
    for index, estimate in estimates:
        number = owners[index]
        parts[number].append(estimate)
        missing[number] -= 1
        if not missing[number]:
            yield number, total(parts.pop(number))
