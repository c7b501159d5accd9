"""The settings of each kind of rule that benchmarks.fewest_forwards compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Settings = dict[str, dict[str, Any]]  # options of decoding by name


def _each(option: str, values: Sequence[float], name: str, **more: Any) -> Settings:
    """A setting for each value of an option."""
    return {f"{name}{value:g}": {option: value, **more} for value in values}


def _drafts(rows: int, odds: Sequence[float | None] = (None,), **more: Any) -> Settings:
    """Every rule with so many rows of drafts, and each of these odds."""
    return {
        f"{rule} {value:g}" + (f", odds {least}" if least else ""): {
            rule: value,
            "draft_rows": rows,
            "draft_odds": least,
            **more,
        }
        for rule, values in DRAFTED.items()
        for value in values
        for least in odds
    }


DRAFTED: dict[str, tuple[float, ...]] = {
    "threshold": (0.7, 0.9, 0.95, 0.97, 0.99),
    "factor": (0.3, 0.1, 0.05),
    "error_budget": (0.1, 0.05, 0.03),
}
ODDS = (0.3, 0.1, 0.03)
KINDS: dict[str, Settings] = {
    "threshold": _each(
        "threshold", (0.5, 0.7, 0.8, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995), ""
    ),
    "factor": _each("factor", (1.2, 0.8, 0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03), ""),
    "error_budget": _each(
        "error_budget", (0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01), ""
    ),
    "max_dependence": _each(
        "threshold", (0.6, 0.7, 0.8, 0.9, 0.95, 0.97), "threshold ", max_dependence=0.02
    ),
    "branches": {
        "0.998, 0.6 and 0.8": dict(threshold=0.998, branches="0.6:0.1+0.6:0.02+0.8:0.02"),
        "0.998, 0.8 to 0.95": dict(threshold=0.998, branches="0.8:0.02+0.9:0.02+0.95:0.02"),
    },
    "4 rows of drafts": _drafts(4),
    "2 rows of drafts with odds": _drafts(2, ODDS),
    "4 rows of drafts with odds": _drafts(4, ODDS),
    "8 rows of drafts with odds": _drafts(8, ODDS),
    "4 rows with odds, max_dependence": {
        f"threshold {value}, odds 0.1": dict(
            threshold=value, max_dependence=0.02, draft_rows=4, draft_odds=0.1
        )
        for value in (0.9, 0.95, 0.97)
    },
}
