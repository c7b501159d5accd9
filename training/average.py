"""Average the weights of a trained model with those that its training started from.

    python -m training.average --model DIR --other TEACHER --share 0.2 --output DIR

The result is an ordinary checkpoint, which keeps more of what the other one knew: weights of one
training lie in one basin, and are better in the middle (WiSE-FT, arXiv 2109.01903).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from llada_plugins.files.atomic import check_empty
from llada_plugins.models.folder import read_config, resolve, stored_dtype
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.loading import load_model
from llada_plugins.models.tokenizer import load_tokenizer
from llada_plugins.options.command_line import run_command
from llada_plugins.options.fields import arg
from training.runs.derived import write_derived

# Least cosine of the matrices of two models of one training. Three rounds of distillation leave .95
# of sudoku4's; two trainings of one shape from other beginnings have .01 to .19.
LEAST_COSINE = 0.5


@dataclass(frozen=True, kw_only=True)
class AverageOptions:
    """Which weights are averaged, and where they go."""

    model: str = arg(
        help="checkpoint folder or hub id of the trained model; 'tiny' is the model in the package"
    )
    other: str = arg(help="the same of the model that its training started from, or a teacher's")
    share: float = arg(help="weight of --other's weights in the average, between 0 and 1")
    output: str = arg(help="folder for the averaged checkpoint; must be empty or absent")

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"--share must be between 0 and 1, got {self.share}")


def average(options: AverageOptions) -> str:
    """Write the averaged checkpoint; returns where.

    ValueError where the models differ in more than weights, OSError where one cannot be read
    or the result not be written.
    """
    folder, other = resolve(options.model), resolve(options.other, option="--other")
    output = Path(options.output)
    check_empty(output)
    _check_alike(folder, other, options)
    model, start = (
        load_model(each, device="cpu", dtype=stored_dtype(each)) for each in (folder, other)
    )
    _check_related(model, start)
    _mix(model, start, options.share)
    averaged = {"model": options.model, "other": options.other, "share": options.share}
    write_derived(model, output, {"averaged": averaged}, folder)
    return f"{output}: {options.model}, and {options.share:g} of {options.other}"


def _check_alike(folder: Path, other: Path, options: AverageOptions) -> None:
    first, second = read_config(folder), read_config(other)
    for field in fields(first):
        values = getattr(first, field.name), getattr(second, field.name)
        if field.compare and values[0] != values[1]:
            raise ValueError(
                f"--model {options.model} and --other {options.other} are not the same model: "
                f"{field.name} is {values[0]} and {values[1]}, give two of one training"
            )
    if load_tokenizer(folder).get_vocab() != load_tokenizer(other).get_vocab():
        raise ValueError(
            f"--model {options.model} and --other {options.other} have different tokenizers: "
            "give two of one training"
        )


def _check_related(model: LLaDA, other: LLaDA) -> None:
    """Raise ValueError on models of two trainings, whose weights have no use in between."""
    own, theirs = model.state_dict(), other.state_dict()
    for option, names in (("--other", own.keys() - theirs), ("--model", theirs.keys() - own)):
        if names:
            raise ValueError(f"{option} has no {min(names)}: give two models of one training")
    products = torch.zeros(3, dtype=torch.float64)
    for name, tensor in own.items():
        if tensor.ndim > 1:  # weights of norms are all near 1
            first, second = tensor.float().flatten(), theirs[name].float().flatten()
            products += torch.stack((first @ second, first @ first, second @ second))
    cosine = float(products[0] / (products[1] * products[2]).sqrt())
    if not cosine >= LEAST_COSINE:  # NaN where all weights are 0
        raise ValueError(
            f"the matrices of --model and --other have a cosine of {cosine:.2f}, less than "
            f"{LEAST_COSINE}: they are of two trainings, whose average is no model; give two of one"
        )


def _mix(model: LLaDA, other: LLaDA, share: float) -> None:
    """Let the model's weights be (1 - share) of its own and share of the other's.

    Sums are computed in float32.
    """
    theirs, mixed = other.state_dict(), {}
    for name, own in model.state_dict().items():
        mixed[name] = own
        if own.is_floating_point():
            mixed[name] = torch.lerp(own.float(), theirs[name].float(), share).to(own.dtype)
    model.load_state_dict(mixed)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(AverageOptions, "python -m training.average", average, argv)


if __name__ == "__main__":
    sys.exit(main())
