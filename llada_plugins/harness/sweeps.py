"""Which harness runs the points of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llada_plugins.reports.frontier import FrontierConfig
from llada_plugins.reports.frontier_lmeval import LMEval
from llada_plugins.reports.frontier_runs import Harness


def harness_of(config: FrontierConfig, options: Mapping[str, str]) -> Harness:
    """OpenCompass for its configs, else lm-eval; options: of the model, as flags gave them."""
    if config.config is not None:
        return _opencompass(config, Path(config.config), options)
    assert config.task is not None
    return LMEval(
        task=config.task,
        label=config.model,
        options=options,
        limit=config.limit,
        include_path=config.include_path,
        lm_eval=config.lm_eval,
        metric=config.metric,
    )


def _opencompass(config: FrontierConfig, path: Path, options: Mapping[str, str]) -> Harness:
    try:
        from .opencompass_sweep import OpenCompass
    except ImportError as error:
        raise ImportError(
            f"--config needs OpenCompass ({error}): pip install 'llada-plugins[opencompass]'"
        ) from error
    return OpenCompass(
        config=path,
        method=config.model,
        options=options,
        data=config.task,
        abbr=config.entry,
        limit=config.limit,
        metric=config.metric,
    )
