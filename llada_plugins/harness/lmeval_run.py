"""What is taken down of one run of lm-eval for its results.

A model of a notebook is handed to one `simple_evaluate` after another, and lm-eval says to
no model where a run begins.
"""

from __future__ import annotations

from typing import Any

from lm_eval.api.model import CacheHook

from llada_plugins.engine.engine import Engine
from llada_plugins.engine.notices import WarnOnce
from llada_plugins.provenance.manifest import Recorder

from .lmeval_cache import tied
from .lmeval_likelihood_checks import check_greedy
from .lmeval_manifest import evaluation, manifest
from .lmeval_options import warn_of_samples
from .lmeval_processes import ParallelLM
from .lmeval_record import Samplers
from .statistics import TotalsByTask


class RecordedLM(ParallelLM):
    """A model that tells what each run asked of it, and what that cost."""

    engine: Engine
    _warnings: WarnOnce
    _recorder: Recorder
    _run: float | None = None  # when the run began of which notes are held
    _samplers: Samplers
    _totals: TotalsByTask
    _cached: float | None = None  # when the run began that gave a --use_cache file
    _chats: bool = False  # has lm-eval rendered a prompt with the chat template?

    def _take_down(self) -> None:
        """Begin to note what is asked and what it costs; the model is loaded."""
        self._recorder = Recorder(self.engine, writes=self.rank == 0)
        self._samplers, self._totals = Samplers(), TotalsByTask()

    def _enter_run(self) -> None:
        """Forget what is noted of another run than the one that asks; check its tasks once.

        Raises ValueError, before anything of the run is computed, where check_greedy does.
        """
        begun = evaluation().get("start_date")
        if begun == self._run:
            return
        if self._cached not in (None, begun):
            self.cache_hook = CacheHook(None)
            self._cached = None
        if self._run is not None:
            self._recorder.begin()
            self._samplers, self._totals = Samplers(), TotalsByTask()
            self._chats = False
            self.engine.overlong.counts.clear()
        check_greedy(self.engine, self._warnings)
        warn_of_samples(self._warnings)
        self._run = begun

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Tie a --use_cache file to this model, until a run that gives none."""
        super().set_cache_hook(cache_hook)
        cache = getattr(cache_hook, "dbdict", None)
        if cache is None:
            return
        self.cache_hook = tied(cache, self.engine.fingerprint())
        run = evaluation()
        self._cached = run.get("start_date") if run.get("use_cache") else None

    def get_model_info(self) -> dict[str, Any]:
        """Merged into the `config` of the results file."""
        self._enter_run()
        info = {
            **self.engine.info(),
            **self._samplers.info(),
            **self._totals.info(),
            "overlong_requests": dict(self.engine.overlong.counts),
        }
        return {**info, **manifest(self._recorder, info)}
