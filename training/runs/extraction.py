"""How a teacher decodes the data's prompts, and which of its answers a student learns."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor

from llada_plugins.diffusion.denoiser import model_denoiser
from llada_plugins.diffusion.token_rows import check_unmasked
from llada_plugins.models.fingerprint import backbone_fingerprint
from llada_plugins.models.folder import known_special_tokens
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.loading import load_model
from llada_plugins.models.tokenizer import load_tokenizer
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.generate import check_fits, generate
from llada_plugins.sampling.step import Step
from training.data.examples import Example
from training.data.token_cache import kept, place
from training.data.trajectories import Trajectories, Trajectory

from .arguments import RunArguments
from .canonical import canonical
from .distill_options import DistillOptions
from .distill_presets import DISTILL_PRESETS
from .jobs import AnswerJob, checkpoint

logger = logging.getLogger(__name__)

CACHE_VERSION = 1  # raise it when the same teacher, rows and options give other trajectories
STEPS = 1 << 31  # more than a block takes

Accepts = Callable[[Example, list[int]], bool]  # is that answer right for the row's prompt?


class UnmaskingOrder:
    """Sees a decode's steps, and tells in which order each answer's tokens were unmasked.

    Tokens of one step come in the order of their confidence, the most confident first.
    """

    def __init__(self, num_rows: int, length: int) -> None:
        self.moment = torch.full((num_rows, length), STEPS * STEPS)  # when, the last time
        self.score = torch.zeros(num_rows, length)

    def __call__(self, step: Step) -> None:
        """Take a step down; a batch that is decoded again takes the place of what it was."""
        rows, columns = step.kept.nonzero(as_tuple=True)
        place = step.start[rows] + columns
        of_answer = place < self.moment.shape[1]  # a last block may be decoded whole, and cut
        rows, columns, place = rows[of_answer], columns[of_answer], place[of_answer]
        token = step.rows[rows].cpu(), place.cpu()
        self.moment[token] = step.block * STEPS + step.step
        self.score[token] = step.score[rows, columns].float().cpu()

    def ranks(self) -> Tensor:
        """(num_rows, length): how many tokens of the answer were unmasked before each."""
        by_score = self.score.argsort(dim=-1, descending=True, stable=True)
        by_moment = self.moment.gather(1, by_score).argsort(dim=-1, stable=True)
        return by_score.gather(1, by_moment).argsort(dim=-1)


class Decoded(NamedTuple):
    """A row as its teacher decoded it."""

    trajectory: Trajectory
    num_forwards: int


def decoded(
    teacher: LLaDA,
    rows: Sequence[Example],
    sampler: SamplerConfig,
    share: float | None = None,
) -> list[Decoded]:
    """The teacher's answers to the rows' prompts, decoded as one batch.

    share: see `canonical`; the sampler has a threshold then.
    """
    prompts = [row.input_ids[: row.prompt_length] for row in rows]
    order = UnmaskingOrder(len(rows), sampler.gen_length)
    denoise = None
    if share is not None:
        assert sampler.threshold is not None
        mask_id = known_special_tokens(teacher).mask
        denoise = canonical(model_denoiser(teacher), mask_id, sure=sampler.threshold, share=share)
    samples = generate(teacher, prompts, sampler, denoise=denoise, on_step=order)
    ranks = order.ranks().tolist()
    return [
        Decoded(
            Trajectory([*prompt, *sample.answer], len(prompt), rank[: len(sample.answer)]),
            sample.num_forwards,
        )
        for prompt, sample, rank in zip(prompts, samples, ranks)
    ]


def taught(
    job: AnswerJob, options: DistillOptions, arguments: RunArguments
) -> tuple[Sequence[Trajectory], Sequence[Trajectory] | None]:
    """The teacher's trajectories to train on, and those for the evaluation.

    Raises ValueError where the teacher cannot answer a prompt, or no answer is to be learned.
    """
    teacher = _teacher(job, options)
    sampler = _sampler(options, job.train)
    accepts = None if options.answers == "teacher" else _rule(job, options)
    sets = [job.train] if job.evaluation is None else [job.train, job.evaluation]
    for rows in sets:
        _check(teacher, rows, sampler)
    shares: Sequence[float | None] = options.canonical or (None,)
    decode = partial(_trajectories, teacher, sampler, options, arguments)
    found: list[Sequence[Trajectory]] = []
    with _on(teacher, arguments.device):
        for rows in sets:
            found.append(
                decode(rows, shares[0])
                if accepts is None
                else _right(rows, shares, decode, accepts)
            )
    return found[0], found[1] if len(found) == 2 else None


def _check(teacher: LLaDA, rows: Sequence[Example], sampler: SamplerConfig) -> None:
    """Raise ValueError on a prompt that the teacher cannot answer."""
    prompts = [row.input_ids[: row.prompt_length] for row in rows]
    special = known_special_tokens(teacher)
    check_unmasked(prompts, special.mask)
    check_fits(teacher, prompts, sampler)


def _teacher(job: AnswerJob, options: DistillOptions) -> LLaDA:
    if options.teacher is None:
        return job.model
    folder, vocab = checkpoint(options.teacher, option="--teacher")
    student = load_tokenizer(job.tokenizer_folder).get_vocab()
    if load_tokenizer(folder).get_vocab() != student or vocab.vocab_size < len(student):
        raise ValueError(
            f"--teacher {options.teacher} has another tokenizer than the model that is trained: "
            "its answers would be other tokens, give a teacher with the same"
        )
    return load_model(folder, device="cpu")


def _sampler(options: DistillOptions, rows: Sequence[Example]) -> SamplerConfig:
    """How the teacher decodes."""
    longest = max(len(row.input_ids) - row.prompt_length for row in rows)
    return SamplerConfig(
        gen_length=options.teacher_length or longest,
        block_length=options.teacher_block,
        steps=options.teacher_steps,
        threshold=options.teacher_threshold,
    )


@contextmanager
def _on(model: LLaDA, device: torch.device) -> Iterator[None]:
    """The model on the device of the run; then back, from where the trainer takes it."""
    before = model.device
    model.to(device)
    try:
        yield
    finally:
        model.to(before)


# --- decoding, by all processes -------------------------------------------------------


def _trajectories(
    teacher: LLaDA,
    sampler: SamplerConfig,
    options: DistillOptions,
    arguments: RunArguments,
    rows: Sequence[Example],
    share: float | None,
) -> Sequence[Trajectory]:
    """The teacher's trajectories of the rows, from the folder that keeps them if it has them.

    share: see `canonical`.
    """
    decode = partial(_decoded_by_all, teacher, sampler, options.teacher_batch, arguments)
    if options.trajectories is None:
        return Trajectories(decode(rows, share))
    made_of = [
        "trajectories",
        CACHE_VERSION,
        backbone_fingerprint(teacher),
        _digest(rows),
        asdict(sampler),
        share,
        options.teacher_batch,
    ]
    cache, every = Path(options.trajectories), list[Trajectory]()
    if not all(gather_object([place(cache, made_of).is_dir()])):  # to all processes
        every = decode(rows, share)

    def write(folder: Path) -> None:
        Trajectories(every, folder)

    with arguments.main_process_first():
        folder = kept(cache, made_of, write, option="--trajectories")
    return Trajectories.load(folder)


def _decoded_by_all(
    teacher: LLaDA,
    sampler: SamplerConfig,
    size: int,
    arguments: RunArguments,
    rows: Sequence[Example],
    share: float | None,
) -> list[Trajectory]:
    """Every process decodes some of the batches of a size, the same on any number of them."""
    numbers = range(len(rows))
    batches = [numbers[start : start + size] for start in numbers[::size]]
    mine = batches[arguments.process_index :: arguments.world_size]
    found: list[tuple[int, list[Decoded]]] = []
    for done, batch in enumerate(mine):
        of_batch = [rows[each] for each in batch]
        found.append((batch.start, decoded(teacher, of_batch, sampler, share)))
        if done and done % 100 == 0:
            logger.info("the teacher has decoded %d of %d batches", done, len(mine))
    every = [row for _, batch in sorted(gather_object(found)) for row in batch]
    forwards = sum(row.num_forwards for row in every) / len(every)
    logger.info("the teacher answered %d prompts in %.2f forwards each", len(every), forwards)
    return [row.trajectory for row in every]


def _digest(rows: Sequence[Example]) -> str:
    """Of the prompts, by content."""
    found = hashlib.blake2b(digest_size=16)
    for row in rows:
        found.update(repr(row.input_ids[: row.prompt_length]).encode())
    return found.hexdigest()


# --- which answers are learned --------------------------------------------------------


def _rule(job: AnswerJob, options: DistillOptions) -> Accepts:
    """What says that an answer is right: the preset's rule, else the data's answer."""
    if options.preset is not None:
        tokenizer = load_tokenizer(job.tokenizer_folder)
        rule = DISTILL_PRESETS[options.preset].accepts

        def accepts(row: Example, answer: list[int]) -> bool:
            prompt = row.input_ids[: row.prompt_length]
            return rule(str(tokenizer.decode(prompt)), str(tokenizer.decode(answer)))

        return accepts
    end = job.model.config.eos_token_id

    def up_to_end(answer: list[int]) -> list[int]:
        return answer[: answer.index(end)] if end in answer else answer

    return lambda row, answer: up_to_end(answer) == up_to_end(row.input_ids[row.prompt_length :])


def _right(
    rows: Sequence[Example],
    shares: Sequence[float | None],
    decode: Callable[[Sequence[Example], float | None], Sequence[Trajectory]],
    accepts: Accepts,
) -> Sequence[Trajectory]:
    """The first right answer to each prompt, of those of the shares in turn.

    Rows without one are left out. ValueError where that is all of them.
    """
    found: dict[int, Trajectory] = {}
    asked: Sequence[Example] = rows
    places: Sequence[int] = range(len(rows))
    for number, share in enumerate(shares):
        if not asked:
            break
        if number:
            told = "%d answers are wrong: they are decoded with a share of %g"
            logger.info(told, len(asked), share)
        for at, row, trajectory in zip(places, asked, decode(asked, share), strict=True):
            if accepts(row, trajectory.input_ids[trajectory.prompt_length :]):
                found[at] = trajectory
        places = [at for at in places if at not in found]
        asked = [rows[at] for at in places]
    right = Trajectories(found[at] for at in sorted(found))
    logger.info("%d of %d answers are right: the others are left out", len(right), len(rows))
    if not right:
        raise ValueError(
            f"--answers right: none of the teacher's {len(rows)} answers is right: give "
            "--answers teacher, or another teacher"
        )
    return right
