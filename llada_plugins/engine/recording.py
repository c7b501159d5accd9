"""The file that record=trajectory writes: a line for each answer, with all its steps.

docs/view.md describes the format; reports/recorded.py reads it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llada_plugins.files import gzip_lines
from llada_plugins.models import text
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.draft import Review, Sample
from llada_plugins.sampling.step import Step
from llada_plugins.sampling.trace import Array, Event, Judged, Pass, Scorer, Trace

from .record_options import RecordOptions
from .request import Completion, Group, QuestionId

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from transformers import PreTrainedTokenizerBase

FORMAT, VERSION = "llada_plugins.trajectory", 1
SHOWN = 20_000  # characters of a prompt that are written down, from its end


class Recorder:
    """Writes down the answers of an engine.

    path: may be set again between calls. about: what every line says of the model.
    identity: what determines its answers, beside the sampler; any text.
    """

    def __init__(
        self,
        options: RecordOptions,
        tokenizer: PreTrainedTokenizerBase,
        about: Mapping[str, Any],
        identity: str,
    ) -> None:
        self.options, self.tokenizer = options, tokenizer
        self.about, self.identity = about, identity
        assert options.record_file is not None
        self.path = Path(options.record_file)
        self._pieces: dict[int, str] = {}  # texts of single tokens
        self._runs: dict[SamplerConfig, dict[str, Any]] = {}  # see `_of_run`
        self._counted: gzip_lines.Counted | None = None
        self._room = options.record_samples  # in the file, for the call in work

    def begin(self) -> None:
        """Prepare for a call of the engine: how many answers are there still to write down?"""
        self._counted = gzip_lines.count(self.path, self._counted)
        self._room = max(0, self.options.record_samples - self._counted.lines)

    def trace(self, group: Group) -> Trace | None:
        """What observes the answers of these requests; None where there is room for none."""
        wanted = {row for row, each in enumerate(group.members) if each.number < self._room}
        return Trace(group.sampler, wanted, self.options.record_tokens) if wanted else None

    def write(
        self, trace: Trace, row: int, group: Group, sample: Sample, completion: Completion
    ) -> None:
        """Add the line of an answer that has ended, if it was observed; forget its steps."""
        events = trace.events.pop(row, [])
        if not events:
            return
        request = group.members[row].request
        line = {
            **self._of_run(group.sampler),
            **(request.id or QuestionId(None, None, 0))._asdict(),
            "prompt": request.prompt[-SHOWN:],
            "prompt_tokens": len(group.members[row].prompt),
            "text": completion.text,
            "answer": list(sample.answer),
            "num_tokens": completion.num_tokens,
            "num_forwards": completion.num_forwards,
            "num_prm_calls": completion.num_prm_calls,
            "seconds": round(completion.seconds, 6),
            "cut": row in trace.cut,
            "pieces": self._pieces_of(events),
            "events": [packed(events, number) for number in range(len(events))],
        }
        gzip_lines.append(self.path, json.dumps(line, ensure_ascii=False, separators=(",", ":")))

    def _of_run(self, sampler: SamplerConfig) -> dict[str, Any]:
        """What is written down of every answer of this sampler."""
        if sampler not in self._runs:
            options = json.dumps(asdict(sampler), sort_keys=True)
            self._runs[sampler] = {
                "format": FORMAT,
                "version": VERSION,
                "run": hashlib.sha256((self.identity + options).encode()).hexdigest()[:12],
                **self.about,
                "sampler": {"gen_length": sampler.gen_length, **changed(sampler)},
                "source": sampler.source,
                "block_length": sampler.block,
            }
        return self._runs[sampler]

    def _pieces_of(self, events: Sequence[Event]) -> dict[int, str]:
        """The texts of all tokens that the events name."""
        ids = set().union(*map(_tokens, events))
        for token in ids - self._pieces.keys():
            self._pieces[token] = text.piece(self.tokenizer, token)
        return {token: self._pieces[token] for token in sorted(ids)}


class Recording(NamedTuple):
    """What is written down of requests that share batches; nothing without a trace."""

    recorder: Recorder | None
    trace: Trace | None

    @classmethod
    def of(cls, recorder: Recorder | None, group: Group) -> Recording:
        """Of these requests."""
        return cls(recorder, recorder.trace(group) if recorder else None)

    @property
    def on_step(self) -> Callable[[Step], None] | None:
        """For `decode_each`."""
        return self.trace.on_step if self.trace else None

    def review(self, review: Review, *, judged: bool) -> Review:
        """The same review, observed."""
        return self.trace.review(review, judged=judged) if self.trace else review

    def scorer(self, score: Scorer) -> Scorer:
        """The same scorer, observed."""
        return self.trace.scorer(score) if self.trace else score

    def write(self, row: int, group: Group, sample: Sample, completion: Completion) -> None:
        """Add an answer that has ended to the file."""
        if self.recorder and self.trace:
            self.recorder.write(self.trace, row, group, sample, completion)


def both(
    one: Callable[[Step], None] | None, other: Callable[[Step], None] | None
) -> Callable[[Step], None] | None:
    """An observer of steps that tells two, either of which may be absent."""
    if one is None or other is None:
        return one or other

    def on_step(step: Step) -> None:
        one(step)
        other(step)

    return on_step


def changed(options: DataclassInstance) -> dict[str, Any]:
    """The options that are not the defaults."""
    return {
        field.name: value
        for field in fields(options)
        if (value := getattr(options, field.name)) != field.default
    }


def packed(events: Sequence[Event], number: int) -> dict[str, Any]:
    """An event as JSON has it; see docs/view.md."""
    event = events[number]
    if isinstance(event, Pass):
        num_steps, width = event.proposed.shape
        return {
            "kind": "pass",
            "fill": event.fill,
            "start": event.start,
            "width": width,
            "steps": num_steps,
            "proposed": _base64(event.proposed, "<i4"),
            "score": _base64(event.score, "<f2"),
            "policy": None if event.policy is None else _base64(event.policy, "<f2"),
            "flags": _base64(event.flags, "u1"),
            "seconds": [round(each, 6) for each in event.seconds.tolist()],
        }
    if isinstance(event, Judged):
        return {
            "kind": "judged",
            "of": judged_pass(events, number),
            "scores": [_rounded(score) for score in event.scores],
        }
    return {"kind": "accepted", "answer": event.answer}


def judged_pass(events: Sequence[Event], number: int) -> int | None:
    """Which event, by its number, is the last pass that left the answer that was judged."""
    judged = events[number]
    assert isinstance(judged, Judged)
    for place in range(number - 1, -1, -1):
        event = events[place]
        if isinstance(event, Pass):
            part = judged.answer[event.window]
            if part and event.proposed[-1, : len(part)].tolist() == part:
                return place
    return None


def _base64(array: Array, dtype: str) -> str:
    """Position by position, so that equal values lie together and are compressed well."""
    return base64.b64encode(array.T.astype(dtype).tobytes()).decode()


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 6)


def _tokens(event: Event) -> list[int]:
    if isinstance(event, Pass):
        found: list[int] = event.proposed.ravel().tolist()
        return found
    return event.answer
