"""What stock OpenCompass is doing while it calls a model: its data sets, and the row of a prompt.

OpenCompass tells a model neither. Both stand in the frames of the callers, under the names
that 0.5.4 gives them; what is not found there is None, and the model says what it cannot do
without it. Not for how a prompt reads, nor for what is answered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from datasets import Dataset
from opencompass.openicl.icl_dataset_reader import load_partial_dataset
from opencompass.openicl.icl_inferencer.icl_base_inferencer import BaseInferencer
from opencompass.openicl.icl_retriever import BaseRetriever
from opencompass.utils import build_dataset_from_cfg, dataset_abbr_from_cfg

from llada_plugins.files.atomic import whole_file

from .frames import callers

# how the names of copies of a data set end, -run0 or _2; sudoku4 is the name of a task
COPY = re.compile(r"[-_][A-Za-z]*\d+$")
INFER_TASKS = {"OpenICLInferTask", "OpenICLAttackTask"}
# function of a stock inferencer -> its variable that counts the rows
ROW_NAMES = {"inference": "index", "predict": "index", "_infer_one": "idx"}


class Asking(NamedTuple):
    """What a stock inferencer is asking for."""

    retriever: BaseRetriever  # has the rows of the task, in their order
    template: Any  # of its prompts; None where the inferencer makes them otherwise
    row: int  # of the first prompt of the call
    sample: int  # which answer for the same prompts (self-consistency)
    samples: int  # how many of them there will be


class Repeats(NamedTuple):
    """Which asking of its question every row of a task is."""

    copy: str  # the data set's name where it is that of a copy, else ""
    numbers: list[int]  # earlier rows of the uncut data set with the same question


def infer_task() -> FrameType | None:
    """The frame of the stock inference task that is running, if one is."""
    for frame in callers():
        owner = frame.f_locals.get("self")
        if frame.f_code.co_name == "run" and INFER_TASKS & {
            base.__name__ for base in type(owner).__mro__
        }:
            return frame
    return None


def dataset_configs() -> list[Mapping[str, Any]]:
    """The data sets that the running task is about to ask the model that it is building."""
    frame = infer_task()
    return list(frame.f_locals.get("dataset_cfgs", ())) if frame else []


def _inferring(model: Any) -> Iterator[FrameType]:
    """The callers that are methods of a stock inferencer of this model, innermost first."""
    for frame in callers():
        owner = frame.f_locals.get("self")
        if isinstance(owner, BaseInferencer) and owner.model is model:
            yield frame


def asking(model: Any) -> Asking | None:
    """What a stock inferencer of this model is asking for, if one is and says so."""
    row: int | None = None
    offset = sample = 0
    in_chat = False
    for frame in _inferring(model):
        found, name = frame.f_locals, frame.f_code.co_name
        owner = found["self"]
        if name == "_gen_turn" and not in_chat:  # a chat of the batch, in a thread of its own
            in_chat, offset = True, found["chat_idx"]
        if row is None and name in ROW_NAMES:
            row = found.get(ROW_NAMES[name])
            sample = len(found.get("sc_results", ()))
        retriever = found.get("retriever") or getattr(owner, "retriever", None)
        if row is not None and retriever is not None:
            template = found.get("prompt_template") or found.get("ice_template")
            samples = getattr(owner, "sc_size", 1)
            return Asking(retriever, template, row + offset, sample, samples)
    return None


def predictions_file(model: Any) -> Path | None:
    """The file in which the stock inferencer that asks this model leaves all predictions."""
    for frame in _inferring(model):
        found = frame.f_locals
        folder, name = found.get("output_json_filepath"), found.get("output_json_filename")
        if folder and name:
            return Path(folder, name)
    return None


def write_predictions_whole(model: Any) -> None:
    """Have the stock inferencer that asks this model write its predictions whole, or not at all.

    Stock code opens the file first and fills it then, and a resumed run takes a file of that
    name for finished. So a kill between the two would leave answers that nobody has.
    """
    for frame in _inferring(model):
        handler = frame.f_locals.get("output_handler")
        if handler is not None:
            if "write_to_json" not in vars(handler):
                handler.write_to_json = _written_whole(handler.write_to_json)
            return


def _written_whole(write: Callable[[str, str], None]) -> Callable[[str, str], None]:
    """A handler's write_to_json whose file gets its name when it is on the disk."""

    def write_whole(save_dir: str, filename: str) -> None:
        with whole_file(Path(save_dir, filename)) as partial:
            write(save_dir, partial.name)

    return write_whole


def repeats(now: Asking) -> Repeats:
    """How often each row's question came before in the uncut data set.

    What a question is, the columns say that the template reads: rows that are equal in
    them get one prompt. Where they are not known, every row counts as a repeat of the
    first, so that none gets the random numbers of another.
    """
    from llada_plugins.engine.request import occurrences

    test, frame = now.retriever.test_ds, infer_task()
    config = frame.f_locals["self"].dataset_cfg if frame else None
    whole, kept = _uncut(test, config)
    columns = _columns(now.template, test.column_names, now.retriever.dataset_reader.output_column)
    rows = whole.select_columns(columns) if columns else [None] * len(whole)
    numbers = occurrences(map(repr, rows))
    kept_numbers = [numbers[row] for row in kept]
    if frame is None or config is None:
        return Repeats("", kept_numbers)
    name = uncut_name(config)
    if COPY.search(name):
        return Repeats(name, kept_numbers)
    _check_twins(config, frame.f_locals["dataset_cfgs"])
    return Repeats("", kept_numbers)


def _uncut(test: Dataset, config: Mapping[str, Any] | None) -> tuple[Dataset, Sequence[int]]:
    """The data set without test_range, and which of its rows are those of `test`."""
    test_range = config["reader_cfg"].get("test_range") if config else None
    if config is None or not test_range:
        return test, range(len(test))
    reader = {name: value for name, value in config["reader_cfg"].items() if name != "test_range"}
    # building copies the entry, and its infer_cfg holds the model
    whole = build_dataset_from_cfg({**config, "reader_cfg": reader, "infer_cfg": None}).test
    numbers = Dataset.from_dict({"row": range(len(whole))})
    return whole, load_partial_dataset(numbers, test_range)["row"]


def _columns(template: Any, columns: Sequence[str], output_column: str | None) -> list[str]:
    """The columns that a prompt template reads; the output column stays out of prompts."""
    string = repr(getattr(template, "template", None) or getattr(template, "messages", None))

    def read(name: str) -> bool:
        return f"{{{name}}}" in string or f"'expand_column': '{name}'" in string

    return [name for name in columns if name != output_column and read(name)]


def _check_twins(config: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError on copies of a data set that only names without a number tell apart."""

    def asked(each: Mapping[str, Any]) -> list[Any]:
        data = {
            name: value
            for name, value in each.items()
            if name not in ("abbr", "eval_cfg", "infer_cfg")
        }
        return [data, each["infer_cfg"].get("prompt_template")]

    for other in others:
        if other["abbr"] != config["abbr"] and asked(other) == asked(config):
            raise ValueError(
                f"data sets {config['abbr']} and {other['abbr']} ask the same: for independent "
                f"answers of theirs end each abbr with a number, as in {config['abbr']}-run0, or "
                "write n=2 in one of them"
            )


def uncut_name(config: Mapping[str, Any]) -> str:
    """A data set's abbr without the number of the part into which a partitioner cut it."""
    abbr = dataset_abbr_from_cfg(config)
    part = re.fullmatch(r"(.+)_(\d+)", abbr)
    cut = last_cut(config["reader_cfg"].get("test_range"))
    # part k begins at k times its size
    if part and cut is not None and cut.start == int(part[2]) * len(cut):
        return part[1]
    return abbr


def last_cut(test_range: Any) -> range | None:
    """The rows of a part, as a partitioner puts them at the end of test_range; None without one."""
    cut = re.search(r"\[(\d+): ?(\d+)\]$", str(test_range or ""))
    return range(int(cut[1]), int(cut[2])) if cut else None
