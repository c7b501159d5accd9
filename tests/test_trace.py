"""Traces: what a decode call did to each answer, against what observers of single steps
see, and the file of them that a killed process leaves.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from benchmarks.operators import Launches
from llada_plugins.diffusion.batch_limit import BatchLimit, OutOfMemory
from llada_plugins.files import gzip_lines
from llada_plugins.rewards.block_review import BlockReview
from llada_plugins.rewards.review_config import ReviewConfig
from llada_plugins.sampling import trace as module
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.decode import decode
from llada_plugins.sampling.draft import Sample, unreviewed
from llada_plugins.sampling.frames import UNKNOWN, frames
from llada_plugins.sampling.generate import with_options
from llada_plugins.sampling.step import Step
from llada_plugins.sampling.trace import (
    EDITED,
    KEPT,
    MASKED,
    REMASKED,
    Accepted,
    Judged,
    Pass,
    Trace,
)
from tests.test_review import REVIEWS, SAMPLER
from tests.test_sampler import PROMPTS, SPECIAL, every_method, toy_denoiser

pytestmark = pytest.mark.floats


def traced(options: dict, trace: Trace | None = None, **given) -> tuple[Trace, list[Sample]]:
    config = SamplerConfig(**options)
    trace = trace or Trace(config)
    samples = decode(
        with_options(toy_denoiser(), config, SPECIAL),
        PROMPTS,
        config,
        SPECIAL,
        on_step=trace.on_step,
        review=trace.review(unreviewed),
        **given,
    )
    return trace, samples


@every_method
def test_the_last_frame_is_the_answer_and_a_pass_has_a_step_for_each_forward(options):
    trace, samples = traced(options)
    for row, sample in enumerate(samples):
        last = frames(trace.events[row])[-1].tokens
        assert last[: len(sample.answer)].tolist() == sample.answer
        assert sum(len(each.proposed) for each in trace.passes(row)) == sample.num_forwards
        assert all((each.seconds >= 0).all() for each in trace.passes(row))


@every_method
def test_a_pass_holds_what_observers_of_single_steps_see(options):
    config, steps = SamplerConfig(**options), []
    trace = Trace(config)

    def both(step: Step) -> None:
        steps.append(step)
        trace.on_step(step)

    decode(
        with_options(toy_denoiser(), config, SPECIAL),
        PROMPTS,
        config,
        SPECIAL,
        on_step=both,
        review=trace.review(unreviewed),
    )
    for row in range(len(PROMPTS)):
        own = [(step, step.rows.tolist().index(row)) for step in steps if row in step.rows]
        seen = {
            "proposed": [step.proposal[place] for step, place in own],
            "score": [step.score[place].half() for step, place in own],
            "policy": [step.policy[place].sigmoid().half() for step, place in own],
        }
        for name, expected in seen.items():
            found = np.concatenate([getattr(each, name).ravel() for each in trace.passes(row)])
            assert torch.equal(
                torch.from_numpy(found), torch.cat(expected).to(torch.as_tensor(found).dtype)
            )
        for name, bit in {
            "masked": MASKED,
            "kept": KEPT,
            "remasked": REMASKED,
            "replaced": EDITED,
        }.items():
            found = np.concatenate([each.flags.ravel() & bit > 0 for each in trace.passes(row)])
            expected = torch.cat([getattr(step, name)[place] for step, place in own])
            assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    "options",
    [
        dict(gen_length=12, block_length=4),
        dict(gen_length=10, block_length=4, threshold=0.4, temperature=1.0),
        dict(gen_length=12, block_length=6, steps=8, blocks_from="answer"),
        dict(gen_length=12, block_length=6, steps=8, revise=True, confidence_source="ups"),
        dict(gen_length=13, block_length=5, early_stop=True),
        dict(gen_length=12, block_length=6, threshold=0.9, edit_threshold=0.2, temperature=1.0),
    ],
    ids=str,
)
@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_blocks_counted_from_rows_first_tokens_leave_prompts_and_padding_out(options, at_once):
    options = dict(options, sampling_method="block_causal")
    trace, samples = traced(options, at_once=BatchLimit(lambda longest: at_once))
    alone, _ = traced(options, at_once=BatchLimit(lambda longest: 1))
    for row, sample in enumerate(samples):
        last = frames(trace.events[row])[-1].tokens
        assert last[: len(sample.answer)].tolist() == sample.answer and (last >= 0).all()
        assert sum(len(each.proposed) for each in trace.passes(row)) == sample.num_forwards
        for one, other in zip(trace.passes(row), alone.passes(row), strict=True):
            assert one.start == other.start >= 0
            assert np.array_equal(one.proposed, other.proposed)
            assert np.array_equal(one.flags, other.flags)
            stood = one.flags[1:] & (MASKED | REMASKED) == 0  # before the step and after it
            edited = stood & (one.proposed[1:] != one.proposed[:-1])
            assert np.array_equal(edited, one.flags[1:] & EDITED > 0)
    any_edited = any((each.flags & EDITED > 0).any() for each in trace.passes(0))
    assert any_edited == ("edit_threshold" in options)


def test_steps_that_left_the_device_in_between_make_the_same_passes(monkeypatch):
    options = dict(gen_length=12, block_length=6, steps=8, revise=True, confidence_source="ups")
    whole, _ = traced(options)
    monkeypatch.setattr(module, "ROOM", 1)
    in_parts, _ = traced(options)
    for row in range(len(PROMPTS)):
        for one, other in zip(whole.passes(row), in_parts.passes(row), strict=True):
            for name in ("proposed", "score", "policy", "flags"):
                assert np.array_equal(getattr(one, name), getattr(other, name))


def test_a_trace_launches_nothing_in_a_step():
    """All of it is launched once a block, however many steps that has."""

    def launched(steps: int, observed: bool) -> int:
        config = SamplerConfig(gen_length=16, steps=steps)
        trace = Trace(config)
        with Launches() as counted:
            decode(
                toy_denoiser(),
                PROMPTS[:1],
                config,
                SPECIAL,
                on_step=trace.on_step if observed else None,
                review=trace.review(unreviewed) if observed else unreviewed,
            )
        return counted.found.total()

    of_block = [launched(steps, True) - launched(steps, False) for steps in (4, 8, 16)]
    assert of_block[0] == of_block[1] == of_block[2] > 0


def test_a_batch_that_was_too_large_leaves_nothing_in_the_trace():
    config = SamplerConfig(gen_length=12, block_length=4)
    trace = Trace(config)

    def small_memory(draft):
        filled = unreviewed(draft)
        if len(draft.rows) > 2:
            raise OutOfMemory("too small")
        return filled

    samples = decode(
        toy_denoiser(),
        PROMPTS,
        config,
        SPECIAL,
        on_step=trace.on_step,
        review=trace.review(small_memory),
        at_once=BatchLimit(lambda longest: 5),
    )
    for row, sample in enumerate(samples):
        assert frames(trace.events[row])[-1].tokens.tolist() == sample.answer
        assert len(trace.passes(row)) == 3


def test_only_the_rows_and_tokens_that_are_asked_for_are_kept():
    config = SamplerConfig(gen_length=12, block_length=4)
    trace, _ = traced(dict(gen_length=12, block_length=4), Trace(config, {1, 3}, max_tokens=5))
    assert sorted(row for row, events in trace.events.items() if events) == [1, 3]
    assert [each.start for each in trace.passes(1)] == [0, 4]
    assert trace.cut == {1, 3}


@pytest.mark.parametrize("review", REVIEWS, ids=str)
def test_every_candidate_of_a_review_is_a_pass_and_what_it_leaves_is_the_answer(review):
    config = SamplerConfig(**SAMPLER)
    trace, asked = Trace(config), []

    def score(rows, answers):
        asked.extend(zip(rows, map(tuple, answers)))
        drawn = random.Random(str(answers))
        return [[drawn.random() for _ in range(-(-len(each) // config.block))] for each in answers]

    judge = BlockReview(ReviewConfig(**review), config, trace.scorer(score), SPECIAL.mask)
    samples = decode(
        toy_denoiser(),
        PROMPTS,
        config,
        SPECIAL,
        on_step=trace.on_step,
        review=trace.review(judge, judged=True),
    )
    for row, sample in enumerate(samples):
        events = trace.events[row]
        found = frames(events)
        assert found[-1].tokens.tolist() == sample.answer
        assert sum(len(each.proposed) for each in trace.passes(row)) == sample.num_forwards
        judged = [tuple(event.answer) for event in events if isinstance(event, Judged)]
        assert judged == [answer for prompt, answer in asked if prompt == row]
        assert [event.answer for event in events if isinstance(event, Accepted)][
            -1
        ] == sample.answer
        for before, after in zip(found, found[1:]):
            if after.step == 0:  # a pass begins from what the frame before it shows
                event = events[after.event]
                assert isinstance(event, Pass)
                masked = before.tokens[event.window] == UNKNOWN
                assert (masked == (event.flags[0] & MASKED > 0)).all()


# ---- the file


def test_lines_come_back_in_order_and_gzip_itself_reads_them(tmp_path):
    import gzip

    path = tmp_path / "new folder" / "lines.gz"
    lines = ["one", "", "żółw 🐢" * 500, "a\\nb"]
    for number, line in enumerate(lines):
        assert gzip_lines.count(path).lines == number
        gzip_lines.append(path, line)
    assert list(gzip_lines.read(path)) == lines
    assert gzip.decompress(path.read_bytes()).decode() == "".join(f"{line}\n" for line in lines)


def test_a_file_cut_at_any_byte_keeps_every_whole_line_and_those_appended_later(tmp_path):
    path = tmp_path / "lines.gz"
    ends = [0]
    for line in ("first", "second"):
        gzip_lines.append(path, line)
        ends.append(path.stat().st_size)
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        gzip_lines.append(path, "third")
        found = list(gzip_lines.read(path))
        kept = ["first", "second"][: sum(end <= size for end in ends[1:])]
        assert [line for line in found if line is not None] == [*kept, "third"]
        assert (None in found) == (size not in ends)


def test_lines_are_counted_without_reading_again_what_was_counted(tmp_path):
    path = tmp_path / "lines.gz"
    counted = gzip_lines.count(path)
    assert counted.lines == 0
    for line in ("first", "second", "third"):
        gzip_lines.append(path, line)
    content = path.read_bytes()
    for size in range(len(content) + 1):  # whatever had come to the disk when it was counted
        path.write_bytes(content[:size])
        counted = gzip_lines.count(path, counted)
        assert counted.lines == gzip_lines.count(path).lines
    path.write_bytes(content[:60])  # by others: it is another file then
    assert gzip_lines.count(path, counted).lines == gzip_lines.count(path).lines < counted.lines


def test_bytes_of_another_kind_are_no_lines(tmp_path):
    path = tmp_path / "lines.gz"
    path.write_bytes(random.Random(0).randbytes(1000))
    assert list(gzip_lines.read(path)) == [None]


def test_a_full_disk_leaves_the_lines_that_there_were(tmp_path, full_disk):
    path = tmp_path / "lines.gz"
    gzip_lines.append(path, "first")
    size = path.stat().st_size
    with full_disk(size + 10), pytest.raises(OSError, match="lines.gz could not be written"):
        gzip_lines.append(path, "second")
    assert path.stat().st_size == size and list(gzip_lines.read(path)) == ["first"]
