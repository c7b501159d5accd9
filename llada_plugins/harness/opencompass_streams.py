"""Random streams of the answers that a task asks for, so that repeats are independent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .opencompass_tasks import Asking, Repeats, asking, infer_task, repeats
from .streams import Stream, stream

if TYPE_CHECKING:
    from opencompass.openicl.icl_retriever import BaseRetriever

    from llada_plugins.engine.notices import WarnOnce


class Streams:
    """What tells the random numbers of answers to equal prompts apart: which asking each is."""

    def __init__(self, warnings: WarnOnce) -> None:
        self._warnings = warnings
        self._repeats: tuple[BaseRetriever, Repeats] | None = None  # of the data set that is asked

    def of(
        self, model: Any, inputs: Sequence[str], *, chance: bool, number: int
    ) -> list[list[Stream]]:
        """The streams of `number` answers to each prompt that a caller of `model` asks.

        Answers are numbered as if the whole data set were asked in one call of the engine;
        copies of a data set have their names besides. chance: do answers depend on random
        numbers?
        """
        now = asking(model)
        if now is None or not chance:
            self._check_direct(inputs, chance)
            return [[stream(sample) for sample in range(number)]] * len(inputs)
        copy, numbers = self._repeats_of(now)
        first = [
            (numbers[now.row + place] * now.samples + now.sample) * number
            for place in range(len(inputs))
        ]
        return [[stream(begin + sample, copy) for sample in range(number)] for begin in first]

    def _repeats_of(self, now: Asking) -> Repeats:
        """Those of the data set that is asked, counted once."""
        if self._repeats is None or self._repeats[0] is not now.retriever:
            self._repeats = now.retriever, repeats(now)
        return self._repeats[1]

    def _check_direct(self, inputs: Sequence[str], chance: bool) -> None:
        """Refuse, within a task, that equal prompts get equal answers; elsewhere say so once.

        So it is where their places in a data set are unknown.
        """
        if chance and infer_task() is not None:
            raise ValueError(
                "this inferencer does not say which row of the data set it asks for, so that "
                "sampling would give equal answers to equal prompts: use GenInferencer, or decode "
                "without chance (temperature=0)"
            )
        if chance and len(set(inputs)) < len(inputs):
            self._warnings.warn(
                "equal prompts of a direct call get equal answers: for n samples of each pass "
                "num_return_sequences=n"
            )
