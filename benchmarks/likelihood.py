"""Seconds and memory of likelihoods at equal standard error.

Ours is held against the published loop (benchmarks/reference.py).

    python -m benchmarks.likelihood
        100M shape, random weights, one CPU thread; 4 minutes
    python -m benchmarks.likelihood --fit_steps 60
        weights fitted to a synthetic language; 3 minutes more, 7 GB
    python -m benchmarks.likelihood --shape 8b --device cuda
        LLaDA-8B's shape in bfloat16

Requests are questions with four choices, prompts and answers of different lengths. The
published loop takes mc_num masked rows of each, mc_batch at a time; its squared
standard error is the spread of its batches. Ours takes 8, 10, 12, 14, 16, 20, … rows
until its mean squared standard error is not above that: `equal_error` is the ratio of
the seconds. `equal_rows` is the ratio where both take mc_num rows, what sharing batches
and the head at scored positions alone save. Seconds are CPU time on a CPU and wall time
on a GPU. Memory is the peak above what was held before, of the process (Linux) or of
the GPU. Before that both score answers of one token, which leave nothing to chance: the
exit status is 1 if values differ.

How much variance `count` removes depends on the weights. Random ones scatter by row
more than by token, the harder case. Weights fitted to a synthetic language
(language.py) differ by token and hardly by mask, the easier one: in 60 updates a model
learns how frequent words are (6.0 nats a token, where frequencies alone give 5.9) and
next to nothing of context. A trained model has both kinds, and where it is nearly
certain of an answer, what is left are rare masks that no regression foresees.
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch

from llada_plugins import LogLikelihood, log_likelihood
from llada_plugins.models.folder import known_special_tokens
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.llada_config import LLaDAConfig
from llada_plugins.models.placement import pick_device, pick_dtype
from llada_plugins.options.fields import arg

from . import reference
from .clock import Seconds, clock_of, device_name
from .command import check_counts, check_folder, run_benchmark
from .language import Language, fit, language, texts
from .process_memory import measured
from .random_models import SHAPES, model_config, random_model

Pair = tuple[list[int], list[int]]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured, and where."""

    shape: Literal["tiny", "100m", "8b"] = arg(
        "100m",
        "width and depth of the model: tiny (to try the command), 100m (279 M parameters with "
        "embeddings) or 8b (LLaDA-8B)",
    )
    device: str = arg("cpu", "auto (a GPU if there is one), cpu, cuda or cuda:N")
    dtype: str = arg(
        "auto",
        "of the measured forwards: auto (bfloat16 on a GPU, else float32), float32, bfloat16 or "
        "float16",
    )
    threads: int = arg(1, "CPU threads; one is steadiest on a shared machine")
    num_questions: int = arg(4, "questions")
    num_choices: int = arg(4, "choices of a question")
    prompt_length: int = arg(48, "longest prompt in tokens; the shortest has a third of it")
    answer_length: int = arg(24, "longest answer in tokens; the shortest has a sixth of it")
    mc_num: int = arg(32, "masked rows of the published loop for each request")
    mc_batch: int = arg(8, "rows that the published loop runs at a time")
    batch_tokens: int = arg(512, "tokens of one of our forwards")
    fit_steps: int = arg(
        0,
        "updates that fit the weights to a synthetic language, from which the requests are drawn "
        "too; 0: random weights and tokens",
    )
    seed: int = arg(0, "of weights, tokens and masks")
    json: str | None = arg(None, "file for the results as JSON")

    def __post_init__(self) -> None:
        check_counts(
            self,
            "threads",
            "num_questions",
            "num_choices",
            "prompt_length",
            "answer_length",
            "batch_tokens",
        )
        if self.fit_steps < 0 or (self.fit_steps and self.shape == "8b"):
            raise ValueError(
                "fit_steps must not be negative, and 0 for shape 8b, whose optimizer needs 128 "
                f"GB; got {self.fit_steps}"
            )
        if self.mc_batch < 1 or self.mc_num % self.mc_batch or self.mc_num < 2 * self.mc_batch:
            raise ValueError(
                f"mc_num must be a multiple of mc_batch ({self.mc_batch}), twice it at least, got "
                f"{self.mc_num}"
            )
        check_folder("json", self.json)
        pick_dtype(self.dtype, pick_device(self.device))


class Run(NamedTuple):
    """What scoring all requests took and gave."""

    rows: int  # masked sequences run
    seconds: Seconds
    peak_bytes: int | None  # above what was held before; None where the system does not tell
    variance: float  # mean squared standard error of a request, nats²


def questions(model: LLaDA, options: Options, spoken: Language | None = None) -> list[Pair]:
    """Choices of questions as (prompt, answer) ids without the mask.

    They are random ids, or text whose first choice goes on where the prompt ends.
    """
    generator = torch.Generator().manual_seed(options.seed)

    def length(longest: int, share: int) -> int:
        return int(torch.randint(max(1, longest // share), longest + 1, (), generator=generator))

    pairs: list[Pair] = []
    for _ in range(options.num_questions):
        size = options.num_choices, options.prompt_length + options.answer_length
        text = (
            torch.randint(known_special_tokens(model).mask, size, generator=generator)
            if spoken is None
            else texts(spoken, *size, generator)
        )
        prompt = text[
            0, options.prompt_length - length(options.prompt_length, 3) : options.prompt_length
        ].tolist()
        pairs += [
            (
                prompt,
                text[choice, options.prompt_length :][: length(options.answer_length, 6)].tolist(),
            )
            for choice in range(options.num_choices)
        ]
    return pairs


def published(model: LLaDA, pairs: Sequence[Pair], options: Options) -> Run:
    """All requests by the published loop."""
    generator = torch.Generator().manual_seed(options.seed)
    batches: list[list[float]] = []

    def work() -> None:
        for pair in pairs:
            prompt, answer = (torch.tensor(ids, device=model.device) for ids in pair)
            batches.append(
                reference.log_likelihood(
                    model,
                    prompt,
                    answer,
                    known_special_tokens(model).mask,
                    options.mc_num,
                    options.mc_batch,
                    generator,
                )
            )

    seconds, peak = measured(work, model.device)
    return Run(
        len(pairs) * options.mc_num,
        seconds,
        peak,
        statistics.mean(statistics.variance(each) / len(each) for each in batches),
    )


def ours(model: LLaDA, pairs: Sequence[Pair], options: Options, mc_num: int) -> Run:
    """All requests by `log_likelihood` with mc_num rows each."""
    values: list[LogLikelihood] = []

    def work() -> None:
        values.extend(
            log_likelihood(
                model, pairs, mc_num=mc_num, seed=options.seed, batch_tokens=options.batch_tokens
            )
        )

    seconds, peak = measured(work, model.device)
    return Run(
        sum(value.num_forwards for value in values),
        seconds,
        peak,
        statistics.mean(value.stderr**2 for value in values),
    )


def rounding(config: LLaDAConfig) -> float:
    """How far float32 log-probabilities may differ, relatively.

    Batches of other shapes add in another order.

    n roundings in a row err by at most 4 sqrt(n) eps but once in 16,000 (Higham & Mary,
    SIAM J. Sci. Comput. 41, A2815): n terms of the sums through all layers and the
    head, of either side.
    """
    terms = config.n_layers * (3 * config.d_model + config.mlp_hidden_size) + config.d_model
    return 2 * 4 * math.sqrt(terms) * torch.finfo(torch.float32).eps


def same_values(model: LLaDA, pairs: Sequence[Pair], options: Options) -> bool:
    """Do both give the same log-probability of the first token of each answer?"""
    first = [(prompt, answer[:1]) for prompt, answer in pairs]
    values = log_likelihood(model, first, batch_tokens=options.batch_tokens)
    expected = [
        reference.log_likelihood(
            model,
            torch.tensor(prompt, device=model.device),
            torch.tensor(answer, device=model.device),
            known_special_tokens(model).mask,
            1,
            1,
        )[0]
        for prompt, answer in first
    ]
    allowed = rounding(model.config)
    return all(
        abs(value.value - other) <= allowed * max(1, abs(other))
        for value, other in zip(values, expected)
    )


def numbers() -> Iterator[int]:
    """8, 10, 12, 14, 16, 20, 24, …: rows to try."""
    for step in (2**power for power in itertools.count(1)):
        yield from range(4 * step, 8 * step, step)


def run(options: Options) -> dict[str, Any]:
    """The whole benchmark; its result can be written as JSON."""
    device = pick_device(options.device)
    model = random_model(
        model_config(options.shape, options.prompt_length + options.answer_length),
        device,
        options.seed,
    )
    spoken = language(known_special_tokens(model).mask, options.seed) if options.fit_steps else None
    fitted = spoken and fit(
        model,
        spoken,
        steps=options.fit_steps,
        length=options.prompt_length + options.answer_length,
        generator=torch.Generator().manual_seed(options.seed + 1),
    )
    pairs = questions(model, options, spoken)
    same = same_values(model, pairs[:: options.num_choices], options)
    model.to(pick_dtype(options.dtype, device))
    ours(model, pairs[:1], options, 2)  # the first forward is slower
    theirs, runs = published(model, pairs, options), {}
    for mc_num in numbers():
        runs[mc_num] = ours(model, pairs, options, mc_num)
        if runs[mc_num].variance <= theirs.variance:
            break
    equal_rows = (
        runs[options.mc_num]
        if options.mc_num in runs
        else ours(model, pairs, options, options.mc_num)
    )
    equal_error, clock = runs[mc_num], clock_of(device)
    seconds = getattr(theirs.seconds, clock)
    return {
        "ratios": {
            "equal_error": seconds / getattr(equal_error.seconds, clock),
            "equal_rows": seconds / getattr(equal_rows.seconds, clock),
        },
        "variance_ratio_at_equal_rows": theirs.variance / equal_rows.variance
        if equal_rows.variance
        else None,
        "same_values": same,
        "clock": clock,
        "runs": {
            name: {**each._asdict(), "seconds": each.seconds._asdict(), "mc_num": number}
            for name, each, number in (
                ("published", theirs, options.mc_num),
                ("equal_error", equal_error, mc_num),
                ("equal_rows", equal_rows, options.mc_num),
            )
        },
        "nats_per_token": fitted and dict(zip(("before", "after"), fitted)),
        "shape": {"name": options.shape, **SHAPES[options.shape]},
        "machine": {
            "device": device_name(device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "torch": torch.__version__,
        },
        "options": asdict(options),
    }


def table(result: dict[str, Any]) -> str:
    """The runs and ratios as text."""
    machine, clock = result["machine"], result["clock"]
    fitted, updates = result["nats_per_token"], result["options"]["fit_steps"]
    weights = (
        f"{updates} updates, {fitted['before']:.2f} to {fitted['after']:.2f} nats a token"
        if fitted
        else "random weights"
    )
    lines = [
        f"{result['shape']['name']}, {weights}, {machine['dtype']}, {machine['device']}: {clock} "
        "time",
        f"{'':<14}{'mc_num':>8}{'rows':>8}{'seconds':>10}{'peak MB':>10}"
        f"{'std. error':>12}{'x faster':>10}",
    ]
    for name, each in result["runs"].items():
        peak = "" if each["peak_bytes"] is None else f"{each['peak_bytes'] / 1e6:.0f}"
        ratio = f"{result['ratios'][name]:.2f}" if name in result["ratios"] else ""
        lines.append(
            f"{name:<14}{each['mc_num']:>8}{each['rows']:>8}"
            f"{each['seconds'][clock]:>10.2f}{peak:>10}"
            f"{each['variance'] ** 0.5:>12.3f}{ratio:>10}"
        )
    return "\n".join(
        [*lines, f"same values of single tokens: {'yes' if result['same_values'] else 'NO'}"]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_benchmark(
        Options, "likelihood", run, table, lambda result: result["same_values"], argv
    )


if __name__ == "__main__":
    sys.exit(main())
