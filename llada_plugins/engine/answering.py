"""Requests become completions: what `Engine.generate` does, from tokens to counted answers."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from llada_plugins.diffusion.batch_limit import BatchLimit
from llada_plugins.diffusion.blocks import Given
from llada_plugins.diffusion.token_rows import check_unmasked
from llada_plugins.sampling.decode import decode_each
from llada_plugins.sampling.draft import Review, unreviewed
from llada_plugins.sampling.generate import with_options
from llada_plugins.sampling.infilling import check_beginning, check_infilling

from . import infilling
from .judging import block_review, question_of
from .metering import Meter
from .overlong import PRM_REMEDY
from .probes import decoding_probe
from .recording import Recording, both
from .request import Completion, Encoded, Group, Request, completed, groups, random_keys, stop_rule
from .unscored import Unscored

if TYPE_CHECKING:
    from .engine import Engine


def completions(
    engine: Engine, requests: Sequence[Request], batch_size: int | None = None
) -> Iterator[tuple[int, Completion]]:
    """`generate`, of texts whose spans have one length each."""
    every, unscored = encoded(engine, requests), Unscored()
    if engine.recorder:
        engine.recorder.begin()
    for each in every:
        if each.mark == "skipped":
            overlong = engine.overlong.counted(each.mark)
            yield each.number, Completion("", 0, 0, 0.0, overlong=overlong)
    for group in groups(each for each in every if each.mark != "skipped"):
        probe = functools.partial(
            decoding_probe, engine.prepared, group, engine.special, engine.model.device
        )
        limit = engine.batches.limit(group.sampler, probe, batch_size)
        yield from unscored.decode(functools.partial(_decode, engine, at_once=limit), group)
    unscored.report(len(requests))


def encoded(engine: Engine, requests: Sequence[Request]) -> list[Encoded]:
    """The requests as they are decoded, after every check of them."""
    for sampler in dict.fromkeys(request.sampler for request in requests):
        engine.check_sampler(sampler)
    whole = [engine.encode(request.prompt) for request in requests]
    check_unmasked(whole, engine.special.mask)
    given = [_given(engine, request, each) for request, each in zip(requests, whole)]
    requests = [infilling.fitted(*each) for each in zip(requests, given)]
    after = [infilling.columns_after(*each) for each in zip(requests, given)]
    prompts, marks = engine.overlong.prompts(requests, whole, after)
    judge = engine.prepared.judge
    questions = [question_of(request, judge, engine.tokenizer) for request in requests]
    if judge is not None:
        questions, marks = engine.overlong.questions(requests, questions, marks, judge.scorer)
    keys = random_keys(requests, [infilling.row(*each) for each in zip(prompts, given)])
    return [
        Encoded(number, *each)
        for number, each in enumerate(zip(prompts, questions, marks, keys, requests, given))
    ]


def _given(engine: Engine, request: Request, prompt: Sequence[int]) -> Given | None:
    """What stands after a request's prompt, where spans of a text are filled in."""
    if not request.rest:
        return None
    check_infilling(request.sampler, reviewed=engine.prepared.judge is not None)
    check_beginning(prompt, shifted=engine.family.shift)
    given = infilling.given_of(request, engine.tokenizer, prompt, engine.special.mask)
    engine.known([*given.answer, *given.after])
    return given


def _decode(engine: Engine, group: Group, at_once: BatchLimit) -> Iterator[tuple[int, Completion]]:
    """The completions of requests that share batches."""
    cut: set[int] = set()  # rows whose question lost its beginning
    recording = Recording.of(engine.recorder, group)
    review = _review(engine, group, cut, recording)
    meter = Meter(review, engine.prepared.judge, len(group.members), engine.model.device)
    likelihoods = infilling.Likelihoods(group, engine.model.device)
    ends = engine.special.ends
    num_batches = math.ceil(len(group.members) / at_once(group.longest))
    engine.model.compiling.foresee(num_batches * group.sampler.most_forwards)
    samples = decode_each(
        meter.marking(with_options(engine.denoise, group.sampler, engine.special)),
        [each.prompt for each in group.members],
        group.sampler,
        engine.special,
        device=engine.model.device,
        keys=[each.key for each in group.members],
        stop=stop_rule(group, engine.tokenizer, ends),
        on_step=both(likelihoods.on_step, both(meter.observer(group.sampler), recording.on_step)),
        review=meter,
        in_step=engine.prepared.judge is not None,
        at_once=at_once,
        given=group.given,
    )
    for row, sample in samples:
        member = group.members[row]
        if member.given is None:
            completion = completed(sample, group.until, engine.tokenizer, ends)
        else:
            completion = infilling.completed(sample, member, engine.tokenizer, ends)
        completion = completion._replace(
            **meter.of(row)._asdict(),
            log_probability=likelihoods.mean(row, member),
            overlong=engine.overlong.counted("truncated" if row in cut else member.mark),
        )
        recording.write(row, group, sample, completion)
        yield member.number, completion


def _review(engine: Engine, group: Group, cut: set[int], recording: Recording) -> Review:
    """The method's review of these answers; cut: gets the rows whose questions were cut."""
    judge = engine.prepared.judge
    if judge is None:
        return recording.review(unreviewed, judged=False)
    limit = judge.scorer.max_length

    def shorten(row: int) -> None:
        cut.add(row)
        engine.warnings.warn(
            f"solutions exceed the PRM's context of {limit} tokens with their questions, of "
            f"which it is told the end alone: {PRM_REMEDY}"
        )

    review = block_review(
        judge,
        group.sampler,
        [each.question for each in group.members],
        tokenizer=engine.tokenizer,
        special=engine.special,
        shorten=None if engine.config.overlong == "error" else shorten,
        tails=[group.sampler.blocks.tail(len(each.prompt)) for each in group.members],
        observe=recording.scorer,
    )
    return recording.review(review, judged=True)
