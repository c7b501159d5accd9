"""What stock OpenCompass is doing while it calls a model: which data sets its task has, and which row of them a prompt is.

OpenCompass tells a model neither. Both stand in the frames of the callers, under the names that 0.5.4 gives them; what is not
found there is None, and the model says what it cannot do without it. Not for how a prompt reads, nor for what is answered.
"""
from __future__ import annotations

import logging
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any, NamedTuple

from datasets import Dataset
from opencompass.openicl.icl_dataset_reader import load_partial_dataset
from opencompass.openicl.icl_inferencer.icl_base_inferencer import BaseInferencer
from opencompass.utils import build_dataset_from_cfg, dataset_abbr_from_cfg

logger = logging.getLogger(__name__)

TASKS = {"OpenICLInferTask", "OpenICLAttackTask"}
ROW_NAMES = {"inference": "index", "predict": "index", "_infer_one": "idx"}        # function of a stock inferencer -> its variable
AUTOREGRESSIVE = {                                                                 # what they read of a model
    "SWCELossInferencer": "next-token logits of sliding windows; PPLOnlyInferencer scores whole texts",
    "MinKPercentInferencer": "next-token probabilities of every position",
    "CLPInferencer": "the next token's logits; PPLInferencer chooses by likelihood",
    "GLMChoiceInferencer": "GLM's own choice(); PPLInferencer chooses by likelihood",
}
NEEDS_AGENT = "AgentInferencer drives an agent, not a model: name OpenCompass' LagentAgent in `models`, with this model as its llm"
LISTS = ("humaneval", "mbpp", "LCBench", "cruxeval", "s2_tomg_bench", "SciReasoner")        # of opencompass.datasets; others score a list as wrong


class Asking(NamedTuple):
    """What an inferencer is asking for."""

    inferencer: BaseInferencer
    test: Dataset       # the rows of the task, in their order
    row: int            # of the first prompt of the call
    sample: int         # which answer for the same prompts (self-consistency)


def infer_task() -> FrameType | None:
    """The frame of the stock inference task that is running, if one is: its `self` and what it is at."""
    for frame in _frames():
        owner = frame.f_locals.get("self")
        if frame.f_code.co_name == "run" and TASKS & {base.__name__ for base in type(owner).__mro__}:
            return frame
    return None


def dataset_configs() -> list[Mapping[str, Any]]:
    """The data sets that the running task is about to ask the model that it is building."""
    frame = infer_task()
    return list(frame.f_locals.get("dataset_cfgs", ())) if frame else []


def asking(model: Any) -> Asking | None:
    """What a stock inferencer of this model is asking for, if one is and says so."""
    row = offset = sample = None
    for frame in _frames():
        found, name = frame.f_locals, frame.f_code.co_name
        owner = found.get("self")
        if not isinstance(owner, BaseInferencer) or owner.model is not model:
            continue
        if name == "_gen_turn" and offset is None:     # one chat of the batch, in a thread of its own
            offset = found["chat_idx"]
        if row is None and (row := found.get(ROW_NAMES.get(name))) is not None:
            sample = len(found.get("sc_results", ()))
        retriever = found.get("retriever") or getattr(owner, "retriever", None)
        if row is not None and retriever is not None:
            return Asking(owner, retriever.test_ds, row + (offset or 0), sample)
    return None


def places(test: Dataset) -> tuple[str, list[tuple[int, int]]]:
    """The data set's name, and for every row of the task (row in the data set, number of its repeat).

    Neither depends on how a partitioner cut the data set. OpenCompass writes a row's number into the column `idx` before it repeats
    the data set (`n`) and cuts it (`test_range`); the repeats are counted in the uncut one.
    """
    frame = infer_task()
    config = frame.f_locals["self"].dataset_cfg if frame else None
    numbered = "idx" in test.column_names
    whole, kept = test, range(len(test))
    test_range = config["reader_cfg"].get("test_range") if config else None
    if test_range and (config.get("n", 1) > 1 or not numbered):
        reader = {name: value for name, value in config["reader_cfg"].items() if name != "test_range"}
        whole = build_dataset_from_cfg({**config, "reader_cfg": reader, "infer_cfg": None}).test        # its infer_cfg holds the model
        kept = load_partial_dataset(Dataset.from_dict({"row": range(len(whole))}), test_range)["row"]
    seen: Counter[int] = Counter()
    found = []
    for row in whole["idx"] if numbered else range(len(whole)):
        found.append((row, seen[row]))
        seen[row] += 1
    name = uncut_name(config) if config else test[0].get("subdivision", "")
    return name, [found[row] for row in kept]


def uncut_name(config: Mapping[str, Any]) -> str:
    """A data set's abbr without the number of the part into which a partitioner cut it."""
    abbr = dataset_abbr_from_cfg(config)
    part = re.fullmatch(r"(.+)_(\d+)", abbr)
    cut = re.search(r"\[(\d+): ?(\d+)\]$", str(config["reader_cfg"].get("test_range") or ""))
    if part and cut and int(cut[1]) == int(part[2]) * (int(cut[2]) - int(cut[1])):        # part k begins at k times its size
        return part[1]
    return abbr


def check_dataset(config: Mapping[str, Any], num_answers: int) -> None:
    """Raise ValueError on a data set that cannot be asked of this model as its entry says; warn of what stock code will leave out."""
    inferencer = config["infer_cfg"]["inferencer"]
    name, where = _name(inferencer["type"]), f"data set {dataset_abbr_from_cfg(config)}: "
    if refusal := _refusal(name, inferencer):
        raise ValueError(where + refusal)
    unread = [option for option in ("do_sample", "temperature") if option in inferencer]
    if unread:
        logger.warning(f"{where}OpenCompass does not pass on its inferencer's {' and '.join(unread)}: write them in the model's entry")
    if reads_lists(config):
        return
    evaluator = _name(config["eval_cfg"]["evaluator"]["type"])
    if num_answers > 1:
        raise ValueError(f"{where}{evaluator} scores a list of num_return_sequences={num_answers} answers as one wrong answer: leave "
                         f"num_return_sequences out and write n={num_answers} in the data set's entry")
    if name == "SCInferencer":
        logger.warning(f"{where}SCInferencer writes lists, and {evaluator} of OpenCompass does not vote: for a score write GenInferencer, and "
                       f"n={inferencer.get('sc_size', 1)} in the data set's entry")


def _refusal(name: str, inferencer: Mapping[str, Any]) -> str | None:
    """Why an inferencer of that name and entry cannot ask this model; None where it can."""
    if name in AUTOREGRESSIVE:
        return needs_autoregressive(name)
    if name == "AgentInferencer":
        return NEEDS_AGENT
    if name == "ToTInferencer" and max(inferencer.get(key, 1) for key in ("n_generate_sample", "n_evaluate_sample")) > 1:
        return ("ToTInferencer asks for the beams of a beam search, which a diffusion sampler does not have: set n_generate_sample and "
                "n_evaluate_sample to 1")
    return None


def needs_autoregressive(name: str) -> str:
    """The line that refuses one of AUTOREGRESSIVE."""
    return f"{name} needs an autoregressive model, which a masked-diffusion model is not: it reads {AUTOREGRESSIVE[name]}"


def reads_lists(config: Mapping[str, Any]) -> bool:
    """May the data set's evaluator be given a list of answers for a row? Known of OpenCompass' own; others are trusted."""
    from opencompass.registry import ICL_EVALUATORS

    kind = (config.get("eval_cfg") or {}).get("evaluator", {}).get("type")
    kind = ICL_EVALUATORS.get(kind) if isinstance(kind, str) else kind
    module = getattr(kind, "__module__", "")
    return not module.startswith("opencompass.") or module.startswith(tuple(f"opencompass.datasets.{name}" for name in LISTS))


def _name(kind: str | type) -> str:
    return kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__


def _frames() -> Iterator[FrameType]:
    """The callers of this thread, innermost first, then of the others: inferencers with a pool of threads wait in one of those."""
    own = threading.get_ident()
    others = [frame for thread, frame in sys._current_frames().items() if thread != own]
    for frame in (sys._getframe(1), *others):
        while frame is not None:
            yield frame
            frame = frame.f_back
