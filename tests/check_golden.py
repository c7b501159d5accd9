"""Run every case of recorded outputs of published code, and print a line for each file.

    python -m tests.check_golden tests/golden/*

A folder holds checkpoint/ and any of the files of CHECKS; folders inside it do not count.
One without checkpoint/ stands for the folders inside it that have one.
Exit status 1 on any miss, with a line that names the case. tests/golden/README.md says
where our own folders come from.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from llada_plugins.diffusion.denoiser import model_denoiser
from llada_plugins.likelihood.estimate import LogLikelihood, log_likelihood
from llada_plugins.models.families import FAMILIES
from llada_plugins.models.gptq import PackedLinear
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.loading import load_model
from llada_plugins.models.mixture import SigmoidRouter
from llada_plugins.models.past import Past
from llada_plugins.models.special_tokens import SpecialTokens
from llada_plugins.options.fields import split
from llada_plugins.sampling import keep_rules, propose, published
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.facts import BY_TIMESTEPS
from llada_plugins.sampling.generate import generate
from llada_plugins.sampling.step import Step
from llada_plugins.sampling.unmask_schedule import planned
from tests.golden_blocks import REPLAYS, SHIFTED, Case, Decoded, bd3lm, llada2, prompts_of, sdar
from tests.tolerance import likelihood_error

RUNS, MASKS = 8, 128  # of the published estimator, for the recorded mean and standard deviation
SIGMA = 5  # standard errors: two right means differ by more once in 1.7 million rows
# position_ids: where the published code counts real tokens, as rotations cannot tell
INPUTS = (
    "input_ids",
    "padded_input_ids",
    "attention_mask",
    "position_ids",
    "offset_position_ids",
    "router_input",
)
CACHED = 16  # columns whose keys and values cached_block_logits rest on
WEIGHT = "dequantised."


class Report(NamedTuple):
    """What became of one file."""

    summary: str  # one line
    misses: list[str]  # a line for each case that is not as recorded


# ---- answers


Replay = Callable[[LLaDA, Case, SpecialTokens | None], Decoded]


def check_answers(path: Path, replay: Replay | None = None, **options: Any) -> Report:
    """Every answer equal token by token, in as many forwards.

    replay: gives a case's answers and forwards (default: that of the family, or `decoded`).
    options: of loading.
    """
    model, recorded = load(path, **options), read(path)
    replay = replay or REPLAYS.get(model.config.family, decoded)
    special = special_tokens(recorded)
    cases = entries(recorded, "cases")
    identical, as_many, tied, misses = 0, 0, 0, []
    for number, case in enumerate(cases):
        place = f"case {number}: {field(case, 'options')}"
        expected = [case["answer"]] if "answer" in case else field(case, "answers")
        try:
            answers, forwards = replay(model, case, special)
            if answers != expected and may_tie(case):
                with ties_as_torch_breaks_them(start=max(map(len, prompts_of(case)))):
                    answers, forwards = replay(model, case, special)
                tied += answers == expected
        except ValueError as error:
            misses.append(f"{place}: {error}")
            continue
        if answers == expected:
            identical += 1
        else:
            misses.append(f"{place}: {first_difference(answers, expected)}")
        if set(forwards) == {field(case, "num_forwards")}:
            as_many += 1
        else:
            misses.append(f"{place}: {forwards} forwards, recorded {case['num_forwards']}")
    ties = f" ({tied} with ties in torch.topk's order)" if tied else ""
    summary = f"{identical}/{len(cases)} identical{ties}, forwards {as_many}/{len(cases)}"
    return Report(summary, misses)


def config_of(case: Case, model: LLaDA) -> SamplerConfig:
    """The case's options under our names, as its published code means them."""
    given = {name: value for name, value in case["options"].items() if name != SHIFTED}
    options = published.native(given, FAMILIES[model.config.family].sampler)
    if FAMILIES[model.config.family].shift and options.get("cache", "none") in ("prefix", "dual"):
        options["shift_cache"] = "published"
        if options.get("threshold") is None:
            # whatever its alg says
            options["schedule"], options["confidence_source"] = "dream", "entropy"
    (config,) = split(options, SamplerConfig)
    return config


def decoded(model: LLaDA, case: Case, special: SpecialTokens | None) -> Decoded:
    """Answers to the case's prompts, and how many forwards the published code needs for each.

    Fast-dLLM looks for masks only after a forward with the cache: a block that its first
    step has filled costs it one forward more than it costs us, but in Dream, where that
    step keeps one token alone. Dream's code and LLaDA's spend a forward on steps that unmask
    nothing.
    """
    prompts, config = prompts_of(case), config_of(case, model)
    steps: Counter[tuple[int, int]] = Counter()  # by row and block

    def count(step: Step) -> None:
        steps.update((row, step.block) for row in step.rows.tolist())

    with recorded_draws(case, config) as keys:
        samples = generate(
            model,
            prompts,
            config,
            special=special,
            denoise=model_denoiser(model, shift=case["options"].get(SHIFTED)),
            keys=keys,
            on_step=count,
        )
        idle = num_idle_steps(config, torch.tensor(keys or [0] * len(prompts)))
    forwards = [sample.num_forwards + more for sample, more in zip(samples, idle)]
    if config.frozen is not None and not config.opens_with_one:
        for (row, _), num_steps in steps.items():
            forwards[row] += num_steps == 1
    return Decoded([sample.answer for sample in samples], forwards)


def num_idle_steps(config: SamplerConfig, keys: Tensor) -> list[int]:
    """Steps of each row's blocks, all alike, in which the published code changes nothing.

    Fast-dLLM leaves a block once it is filled: where it has a cache, there are none.
    """
    if config.fixed_schedule not in BY_TIMESTEPS:
        return [config.num_idle_steps if config.frozen is None else 0] * len(keys)
    masked = torch.ones(len(keys), config.block, dtype=torch.bool)
    draws = propose.draws_of_confidence(keys, 0, config.block)
    standing = planned(masked, config, uniform=draws)
    assert standing is not None
    unmasked = standing.diff(dim=1, prepend=torch.zeros(len(keys), 1, dtype=torch.long))
    return ((unmasked == 0).sum(-1) * config.num_blocks).tolist()


@contextmanager
def recorded_draws(case: Case, config: SamplerConfig) -> Iterator[list[int] | None]:
    """Inside, random numbers are the case's, if it has some; gives the rows' streams.

    Its step i compared draws[i], one for each token still masked, row by row, with the
    probability of that step: a token below it was unmasked. Ours are unmasked above 1 - it.
    """
    if "draws" not in case:
        yield None
        return
    times = torch.linspace(1, config.last_timestep, config.steps_per_block + 1)
    masked = torch.ones(len(case["prompts"]), config.gen_length, dtype=torch.bool)
    drawn = torch.ones(len(masked), config.steps_per_block, config.gen_length)  # fp32
    for step, numbers in enumerate(case["draws"]):
        here = torch.ones(masked.shape)
        here[masked] = torch.tensor(numbers)
        drawn[:, step] = here
        is_last = step == config.steps_per_block - 1
        masked &= here >= (2.0 if is_last else 1 - times[step + 1] / times[step])

    def uniform(key: Tensor, step: Tensor, position: Tensor, use: int) -> Tensor:
        return 1 - drawn[key, step, position].double()

    own, propose.uniform = propose.uniform, uniform
    try:
        yield list(range(len(masked)))
    finally:
        propose.uniform = own


def may_tie(case: Case) -> bool:
    """Can a filter leave one token at several positions, which are then trusted alike?"""
    return case["options"].get("top_p") is not None or case["options"].get("top_k") == 1


@contextmanager
def ties_as_torch_breaks_them(start: int) -> Iterator[None]:
    """Inside, ties go as torch.topk's on a CPU do in whole rows, which is no rule to speak of.

    start: column at which answers begin.
    """

    def keep_top(score: Tensor, count: Tensor) -> Tensor:
        standing = score == math.inf
        row = F.pad(score.masked_fill(standing, -math.inf), (start, 0), value=-math.inf)
        number = int((count - standing.sum(-1))[0])  # the same in all rows of one block
        chosen = torch.zeros_like(row, dtype=torch.bool)
        chosen.scatter_(1, row.topk(number).indices, True)
        return standing | chosen[:, start:]

    own, keep_rules.keep_top = keep_rules.keep_top, keep_top
    try:
        yield
    finally:
        keep_rules.keep_top = own


def first_difference(answers: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> str:
    """Where the first of the answers that differ does so."""
    if len(answers) != len(expected):
        return f"{len(answers)} answers, recorded {len(expected)}"
    row = next(row for row, pair in enumerate(zip(answers, expected)) if pair[0] != pair[1])
    found, wanted = answers[row], expected[row]
    if len(found) != len(wanted):
        return f"answer {row} has {len(found)} tokens, recorded {len(wanted)}"
    token = next(token for token, pair in enumerate(zip(found, wanted)) if pair[0] != pair[1])
    return f"answer {row} has {found[token]} at token {token}, recorded {wanted[token]}"


# ---- likelihoods


def check_likelihood(path: Path) -> Report:
    """Enumerated values within twice what float32 rounds, sampled means within SIGMA errors."""
    model, recorded = load(path), read(path)
    special, rows = special_tokens(recorded), entries(recorded, "rows")
    pairs = [(field(row, "prompt"), field(row, "answer")) for row in rows]
    subsets = 2 ** max(len(answer) for _, answer in pairs)
    allowed = [likelihood_error(model, len(answer)) for _, answer in pairs]
    misses, wrong, worst = [], set(), 0.0
    for name in ("exact", "count"):  # count enumerates too, where mc_num allows it
        values = log_likelihood(model, pairs, estimator=name, mc_num=subsets, special=special)
        for number, (row, value) in enumerate(zip(rows, values)):
            expected = field(row, "exact")
            off = abs(value.value - expected)
            worst = max(worst, off)
            if not off <= allowed[number] or value.stderr:
                wrong.add(number)
                misses.append(f"row {number}: estimator={name} gives {value}, recorded {expected}")
    num_masks = RUNS * MASKS
    sampled = log_likelihood(model, pairs, estimator="published", mc_num=num_masks, special=special)
    means = compare_means(rows, sampled, allowed)
    enumerated = f"{len(rows) - len(wrong)}/{len(rows)} enumerated, max |d| {worst:.0e} nats"
    return Report(f"{enumerated}; {means.summary}", misses + means.misses)


def compare_means(
    rows: Sequence[Case], sampled: Sequence[LogLikelihood], allowed: Sequence[float]
) -> Report:
    """Each row's mean of the published estimator, and their sum, within SIGMA standard errors.

    Ours are of as many masks as the recorded ones, so both have one standard error. Of the
    two estimates of it the larger counts: a deviation of 8 runs is known to a quarter only.
    The sum shows a bias that is too small for any single row.
    """
    misses, total, variance = [], 0.0, 0.0
    for number, (row, value) in enumerate(zip(rows, sampled)):
        mean, std = field(row, "official_mc128_mean"), field(row, "official_mc128_std")
        error = math.hypot(math.sqrt(2) * max(std / math.sqrt(RUNS), value.stderr), allowed[number])
        off = value.value - mean
        total, variance = total + off, variance + error**2
        if not abs(off) <= SIGMA * error:
            misses.append(
                f"row {number}: estimator=published gives {value.value:.4f} nats, "
                f"recorded {mean:.4f}: {abs(off) / error:.1f} standard errors off"
            )
    together = abs(total) / math.sqrt(variance)
    right = f"published means {len(rows) - len(misses)}/{len(rows)}"
    if not together <= SIGMA:
        misses.append(f"all rows: estimator=published is {together:.1f} standard errors off")
    return Report(f"{right}, together {together:.1f} standard errors off", misses)


# ---- tensors


def check_tensors(path: Path) -> Report:
    """Outputs within twice what the last bit of every weight changes; dequantised weights equal.

    Outputs called blockB_… are of the block-causal mask: a token sees its block of B columns
    and those before it. For others see `forwards_of`, `cached_block`, `routed`.

    The tolerance is measured for each output: other code and other processors round
    otherwise, and how far that goes depends on depth, width and weights. On our own folders
    kernels for AVX-512, for AVX2 and for neither are all off by less than once that change.
    """
    recorded = load_file(path)
    weights, expected = {}, {}
    for name, tensor in recorded.items():
        if name.startswith(WEIGHT):
            weights[name.removeprefix(WEIGHT)] = tensor
        elif name not in INPUTS:
            expected[name] = only_real(name, tensor, recorded)
    expected |= in_ascending_order(expected)
    if not expected:
        raise ValueError(f"no outputs among its tensors {', '.join(recorded)}")
    model = load(path)
    plain, moved = (outputs_of(each, recorded) for each in (model, nudged(model)))
    allowed = {name: 2 * distance(plain[name], moved[name]) for name in plain}
    allowed |= {name: 0.0 for name, each in plain.items() if not each.is_floating_point()}
    report = compare(plain, expected, allowed)
    if not weights:
        return report
    packed = load(path, quantize="packed")
    reports = [
        report,
        compare_weights(model, weights),
        compare(outputs_of(packed, recorded), expected, allowed),
        compare_weights(packed, weights),
    ]
    summary = "{}, {}; left packed {}, {}".format(*(each.summary for each in reports))
    return Report(summary, [miss for each in reports for miss in each.misses])


def check_bfloat16(path: Path) -> Report:
    """Logits of weights in bfloat16, equal bit by bit where the same kernels ran.

    They are torch's fused attention or, as for SDAR's masks, its unfused one. Elsewhere they
    may be off by twice what bfloat16 itself costs: the distance of ours from ours in float32
    with the same, rounded weights.
    """
    with safe_open(path, "pt") as file:
        block = (file.metadata() or {}).get("block_length", "none")
    recorded = load_file(path)
    ids, expected = field(recorded, "input_ids"), field(recorded, "logits")
    mask = None if block == "none" else block_causal(ids, int(block))
    model = load(path, dtype="bfloat16")
    with torch.inference_mode():
        found = model(ids, mask)
        exact = copy.deepcopy(model).float()(ids, mask)
        with sdpa_kernel(SDPBackend.MATH):
            unfused = model(ids, mask)
    if torch.equal(found, expected):
        return Report(f"{found.numel()} numbers equal bit by bit", [])
    if torch.equal(unfused, expected):
        return Report(f"{found.numel()} numbers equal bit by bit (unfused attention)", [])
    off, allowed = (distance(found.float(), each.float()) for each in (expected, exact))
    summary = f"max |d| {off:.0e} of {2 * allowed:.0e}, {int((found != expected).sum())} differ"
    misses = [] if off <= 2 * allowed else [f"logits: max |d| {off:.1e}, allowed {2 * allowed:.1e}"]
    return Report(summary, misses)


def block_causal(ids: Tensor, length: int, positions: Tensor | None = None) -> Tensor:
    """Which columns each token sees, (B, L, L): those of its block of `length`, and before it.

    positions: (B, L), by which blocks are counted; default 0, 1, 2 …
    """
    places = torch.arange(ids.shape[1]).expand(len(ids), -1) if positions is None else positions
    block = places // length
    return block[:, None, :] <= block[:, :, None]


def in_ascending_order(recorded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The recorded experts of each row in ascending order, for theirs is free, with weights."""
    if "router_topk_idx" not in recorded:
        return {}
    order = recorded["router_topk_idx"].argsort(-1)
    names = ("router_topk_idx", "router_topk_weight")
    return {name: recorded[name].gather(1, order) for name in names}


def compare(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], allowed: Mapping[str, float]
) -> Report:
    """The largest difference of each output from what was recorded."""
    clauses, misses, worst, relative = [], [], 0.0, 0.0
    for name, tensor in expected.items():
        if name not in found:
            misses.append(f"{name}: no such output here; there are {', '.join(found)}")
            continue
        off = distance(found[name], tensor)
        worst, relative = max(worst, off), max(relative, off / float(tensor.abs().max()))
        clauses.append(f"{name} {off:.0e} of {allowed[name]:.0e}")
        if not off <= allowed[name]:
            misses.append(f"{name}: max |d| {off:.1e}, allowed {allowed[name]:.1e}")
    summary = f"max |d| {worst:.0e}, relative {relative:.1e} ({', '.join(clauses)})"
    return Report(summary, misses)


def compare_weights(model: LLaDA, weights: Mapping[str, Tensor]) -> Report:
    """How many Linears have the recorded weight, bit by bit."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            found[f"{name}.weight"] = module.dequantised(torch.float32)
        elif isinstance(module, nn.Linear):
            found[f"{name}.weight"] = module.weight
    misses = [
        f"{name}: no Linear has this weight"
        for name, weight in weights.items()
        if name not in found or not torch.equal(found[name], weight)
    ]
    return Report(f"{len(weights) - len(misses)}/{len(weights)} weights equal", misses)


class Given(NamedTuple):
    """What a forward of the whole model is given."""

    ids: Tensor  # (B, L)
    mask: Tensor | None = None  # (B, L) or (B, L, L)
    positions: Tensor | None = None  # (B, L)


def forwards_of(recorded: Mapping[str, Tensor]) -> dict[str, Given]:
    """The forwards that were recorded, by how the names of their outputs begin.

    full_: every token sees all. offset_: rows at positions of their own, by which their blocks
    are counted, as long as those with hidden states. Either may be of the first columns alone.
    """
    ids = field(recorded, "input_ids")
    found = {"": Given(ids)}
    if "padded_input_ids" in recorded:
        padded = Given(recorded["padded_input_ids"], field(recorded, "attention_mask"))
        found["padded_"] = padded
    for length in block_lengths(recorded):
        found[f"block{length}_"] = Given(ids, block_causal(ids, length))
    if "full_logits" in recorded:
        first = ids[:, : recorded["full_logits"].shape[1]]
        found["full_"] = Given(first, torch.ones(*first.shape, first.shape[1]))
    if "offset_position_ids" in recorded:
        positions = recorded["offset_position_ids"]
        lengths = block_lengths(recorded)
        with_states = [each for each in lengths if f"block{each}_hidden_0" in recorded]
        (length, *_) = with_states or lengths
        first = ids[:, : positions.shape[1]]
        found["offset_"] = Given(first, block_causal(first, length, positions), positions)
    return found


def block_lengths(recorded: Mapping[str, Tensor]) -> list[int]:
    """The lengths of blocks that were recorded."""
    names = (re.match(r"block(\d+)_", name) for name in recorded)
    return sorted({int(each[1]) for each in names if each})


@torch.inference_mode()
def outputs_of(model: LLaDA, recorded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the model gives for the recorded inputs, by the names of recorded tensors."""
    found = {}
    for prefix, given in forwards_of(recorded).items():
        ids, mask, positions = given
        states = model.hidden_states(ids, mask, position_ids=positions, every_layer=True)
        named = {f"hidden_{number}": state for number, state in enumerate(states)}
        named["logits"] = model(ids, mask, position_ids=positions)
        if model.own_stream:
            named["confidence"] = model.streams(ids, mask).confidence
        for name, tensor in named.items():
            found[f"{prefix}{name}"] = only_real(prefix, tensor, recorded)
    if "cached_block_logits" in recorded:
        width = recorded["cached_block_logits"].shape[1]
        found["cached_block_logits"] = cached_block(model, recorded["input_ids"], width)
    if "router_input" in recorded:
        found |= routed(model, recorded["router_input"])
    return found


def cached_block(model: LLaDA, ids: Tensor, width: int) -> Tensor:
    """Logits of the block after CACHED columns, whose keys and values a forward before it kept.

    That forward had other tokens in the block, which the kept ones cannot have seen.
    """
    ids = ids[:, : CACHED + width]
    mask, columns, past = block_causal(ids, width), slice(CACHED, CACHED + width), Past()
    model.streams(ids.index_fill(1, torch.arange(CACHED, CACHED + width), 0), mask, past=past)
    return model.head(model.streams(ids, mask, columns=columns, past=past).hidden)


def routed(model: LLaDA, x: Tensor) -> dict[str, Tensor]:
    """What the first router from layer 1 on makes of rows (R, D); chosen experts ascend."""
    routers = (each for each in model.blocks[1:].modules() if isinstance(each, SigmoidRouter))
    router = next(routers)
    chosen, weight = router(x)
    order = chosen.argsort(-1)
    return {
        "router_topk_idx": chosen.gather(1, order),
        "router_topk_weight": weight.gather(1, order),
        "router_logits": router.logits(x),
    }


def only_real(name: str, tensor: Tensor, recorded: Mapping[str, Tensor]) -> Tensor:
    """The tensor (B, L, …) of that name; a padded one as (number of real tokens, …)."""
    if not name.startswith("padded_"):
        return tensor
    return tensor[field(recorded, "attention_mask").bool()]


def nudged(model: LLaDA) -> LLaDA:
    """A copy with each weight moved to the next fp32 number, up or down at random."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        up = torch.rand(parameter.shape, generator=generator) < 0.5
        parameter.data = torch.nextafter(parameter.data, torch.where(up, math.inf, -math.inf))
    return model


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest difference of two elements; inf for another shape, or where one is no number."""
    if found.shape != expected.shape:
        return math.inf
    return float((found - expected).abs().nan_to_num(math.inf).max())


# ---- files and folders

CHECKS: dict[str, Callable[[Path], Report]] = {
    "generate.json": check_answers,
    "generate_mdlm.json": check_answers,
    "generate_edit.json": partial(check_answers, replay=llada2),
    "generate_root.json": partial(check_answers, replay=sdar),
    "generate_bd3lm.json": partial(check_answers, replay=bd3lm, attention="block_causal"),
    "parallel.json": check_answers,
    "likelihood.json": check_likelihood,
    "logits.safetensors": check_tensors,
    "logits_bf16.safetensors": check_bfloat16,
    "outputs.safetensors": check_tensors,
}


def load(path: Path, **options: Any) -> LLaDA:
    """The checkpoint beside a file, on the device and in the dtype of the recordings."""
    options = {"device": "cpu", "dtype": "float32", **options}
    return load_model(path.parent / "checkpoint", **options)


def read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; not valid JSON is a ValueError."""
    return json.loads(path.read_text(encoding="utf-8"))


def field(record: Mapping[str, Any], name: str) -> Any:
    """A field that the layout asks for."""
    if not isinstance(record, Mapping) or name not in record:
        raise ValueError(f"no field {name!r} in {str(record)[:80]}")
    return record[name]


def entries(recorded: Case, name: str) -> list[Case]:
    """A field that lists cases; ValueError where it lists none."""
    found = field(recorded, name)
    if not isinstance(found, list) or not found:
        raise ValueError(f"{name} must be a list of at least one case")
    return found


def special_tokens(recorded: Case) -> SpecialTokens | None:
    """The ids of the recorded run; None, the checkpoint's own, where the file names none."""
    if "mask_id" not in recorded:
        return None
    return SpecialTokens(recorded["mask_id"], recorded.get("eos_id"))


def sets(folder: Path) -> list[Path]:
    """The folders with recordings that one on the command line stands for; none for a README."""
    if folder.is_file() and folder.stem == "README":
        return []
    inside = [] if (folder / "checkpoint").exists() else sorted(folder.glob("*/checkpoint"))
    return [checkpoint.parent for checkpoint in inside] or [folder]


def recordings(folder: Path) -> list[Path]:
    """The recorded files of a folder, also those without a check; ValueError if none has one."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
    if not any(path.name in CHECKS for path in files):
        raise ValueError(f"{folder}: nothing to check: it has none of {', '.join(CHECKS)}")
    return files


def check(path: Path) -> Report:
    """What became of a file; one that has no check, or cannot be read as one, is a miss."""
    if path.name not in CHECKS:
        return Report("not checked", [f"no check has this name; there are {', '.join(CHECKS)}"])
    try:
        return CHECKS[path.name](path)
    except (ValueError, OSError, SafetensorError) as error:
        return Report("not checked", [str(error)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the folders of a command line; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.check_golden", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="holds checkpoint/ and recorded files; a README is passed over",
    )
    given = parser.parse_args(arguments).folders
    torch.set_num_threads(1)  # matrices are tiny: a second thread costs more than it brings
    failed = False
    for folder in [each for one in given for each in sets(one)]:
        try:
            files = recordings(folder)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
            continue
        for path in files:
            failed |= not printed(path)
    return int(failed)


def printed(path: Path) -> bool:
    """Check a file and print what became of it; whether nothing is amiss."""
    report = check(path)
    print(f"{path.parent}: {path.stem} {report.summary}", flush=True)
    for miss in report.misses:
        print(f"{path.parent}: {path.stem}: {miss}", flush=True)
    return not report.misses


if __name__ == "__main__":
    sys.exit(main())
