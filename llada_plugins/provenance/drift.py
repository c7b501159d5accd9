"""A run beside what is published: score, interval, and every setting that differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, NamedTuple

from llada_plugins.engine.config import HARNESS_DEFAULTS, EngineConfig
from llada_plugins.engine.interval import Interval, wilson
from llada_plugins.options.fields import build, names
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.settings.table import Preset, Score

from .runs import Run

ROUNDED = 0.05  # percent: published scores have one decimal
Verdict = Literal["agrees", "differs", "not comparable"]
# options that change no answer, or draw other ones of the same distribution
WITHOUT_EFFECT = (
    "seed",
    "early_stop",
    "remasking",
    "confidence_source",
    "sampling_method",
    "blocks_from",  # what the model's family says
)
WORDS = {
    "gen_length": "length",
    "block_length": "block",
    "confidence_eos_eot_inf": "gating (confidence_eos_eot_inf)",
    "logits_eos_inf": "gating (logits_eos_inf)",
}
# options that are compared as they stand
PLAIN = ("quantize", "peft", "add_bos_token")
# and of a likelihood, beside its guidance
ESTIMATE = ("estimator", "mc_num", "mc_batch")


class Comparison(NamedTuple):
    """How a run stands to a preset."""

    run: Run
    preset: Preset | None  # None where nothing is published of the task
    named: bool  # did the run name the preset?
    score: Score | None  # the published one that it is held against
    interval: Interval | None  # of ours
    differences: list[str]  # of settings
    notes: list[str]  # which make nothing incomparable
    verdict: Verdict


def compare(run: Run, presets: Sequence[Preset]) -> Comparison:
    """The run beside its own preset, or the nearest of these."""
    if not presets:
        return Comparison(run, None, False, None, _interval(run), [], [], "not comparable")
    preset = _nearest(run, presets)
    found = differences(run, preset)
    score = _score(run, preset)
    notes = list(_versions(run, score)) if score else []
    if score is not None and score.source.harness != run.harness:
        found.append(f"harness: {run.harness}, published of another ({score.source.where})")
    interval = _interval(run)
    verdict: Verdict = "not comparable"
    if score is not None and interval is not None and not (found or run.problems):
        inside = 100 * interval.low - ROUNDED <= score.value <= 100 * interval.high + ROUNDED
        verdict = "agrees" if inside else "differs"
    named = preset.name == run.preset
    return Comparison(run, preset, named, score, interval, found, notes, verdict)


def _nearest(run: Run, presets: Sequence[Preset]) -> Preset:
    """The run's own preset; else of its preset's model, of its model, or of all the nearest."""
    model = (run.preset or "").partition("/")[0]
    own = [preset for preset in presets if preset.name == run.preset]
    siblings = [preset for preset in presets if preset.model == model]
    similar = [preset for preset in presets if _same_model(run, preset)]
    candidates = own or siblings or similar or presets
    return min(candidates, key=lambda each: len(differences(run, each)))


def _interval(run: Run) -> Interval | None:
    """Of the run's score."""
    if run.score is None or not run.questions:
        return None
    return wilson(run.score / 100, run.questions)


def differences(run: Run, preset: Preset) -> list[str]:
    """The settings of a run that are not the preset's, a line for each."""
    pairs: dict[str, tuple[Any, Any] | None] = {
        "checkpoint": None if _same_model(run, preset) else (run.model, preset.pretrained),
        "questions": (run.questions, preset.task.questions),
        "shots": (run.shots, preset.shots) if run.harness == "lm_eval" else None,
        "chat template": (run.chat, preset.chat),
        "template hash": (run.template, preset.template) if run.chat and preset.chat else None,
        "dtype": (run.dtype, preset.dtype),
        **_options(run.options, preset),
    }
    told = [
        f"{name}: {pair[0]}, published {pair[1]}"
        for name, pair in pairs.items()
        if pair is not None and None not in pair and pair[0] != pair[1]
    ]
    return [*told, *run.others]


def _options(options: Mapping[str, Any], preset: Preset) -> dict[str, tuple[Any, Any]]:
    """Ours and the published value of the options that have an effect on this task."""
    wanted = preset.options
    scored = "estimator" in wanted
    plain = [*PLAIN, *(ESTIMATE if scored else ())]
    pairs = {
        name: (_word(options[name]), _word(wanted.get(name, getattr(EngineConfig(), name))))
        for name in plain
        if name in options
    }
    if scored:
        guidance = options.get("cfg_scale", 0), wanted.get("cfg_scale", 0)
        return {**pairs, "cfg_scale": (float(guidance[0]), float(guidance[1]))}
    known = {name: options[name] for name in names(SamplerConfig) if name in options}
    if known.get("gen_length") is None:  # nothing was decoded
        return pairs
    ours = _effective(build(SamplerConfig, known, HARNESS_DEFAULTS))
    theirs = _effective(build(SamplerConfig, wanted, HARNESS_DEFAULTS))
    decoding = {WORDS.get(name, name): (_word(ours[name]), _word(theirs[name])) for name in ours}
    return {**pairs, **decoding}


def _word(value: Any) -> str:
    """A value that may be nothing, so that nothing differs from something."""
    return "none" if value is None else str(value)


def _effective(sampler: SamplerConfig) -> dict[str, Any]:
    """The sampler's options with defaults that follow from others spelt out."""
    values = {
        field.name: getattr(sampler, field.name)
        for field in fields(SamplerConfig)
        if field.name not in WITHOUT_EFFECT
    }
    values["block_length"] = sampler.block
    values["steps"] = None if sampler.adaptive else sampler.steps or sampler.decoded_length
    values["alg_temp"] = sampler.alg_temp or None
    values["cache"] = sampler.cache if sampler.approximates else "exact or none"
    values["confidence"] = sampler.source
    tempers = sampler.confidence_of == "tempered" and sampler.temperature not in (0, 1)
    if sampler.confidence_of != "filtered" and not tempers:
        values["confidence_of"] = "raw"
    values["canvas grows"] = sampler.grows
    return values


def _same_model(run: Run, preset: Preset) -> bool:
    return run.model.rstrip("/").rpartition("/")[2] == preset.pretrained.rpartition("/")[2]


def _score(run: Run, preset: Preset) -> Score | None:
    """The published score of the run's harness, else the first."""
    ordered = sorted(preset.scores, key=lambda score: score.source.harness != run.harness)
    return ordered[0] if ordered else None


def _versions(run: Run, score: Score) -> Iterator[str]:
    for name, version in score.source.versions.items():
        ours = run.versions.get(name)
        if ours is not None and ours != version:
            yield f"{name} {ours}, published with {version}"


def described(found: Comparison) -> list[str]:
    """A comparison as people read it."""
    run, preset, score = found.run, found.preset, found.score
    lines = [f"{run.task}: {_held_against(found)}"]
    ours = "none" if run.score is None else f"{run.score:.2f} ({run.metric})"
    lines.append(f"  ours         {ours}")
    if found.interval:
        low, high = 100 * found.interval.low, 100 * found.interval.high
        lines.append(f"  interval     {low:.2f} to {high:.2f} (95 %, {run.questions} questions)")
    if score is None:
        lines.append("  published    no score")
    else:
        lines.append(f"  published    {score.value:g}  {score.source.where}")
        if run.score is not None:
            lines.append(f"  difference   {run.score - score.value:+.2f}")
    lines += [f"  problem      {problem}" for problem in run.problems]
    lines += [f"  setting      {line}" for line in found.differences]
    lines += [f"  version      {line}" for line in found.notes]
    unverified = preset.unverified if preset is not None else ()
    lines += [f"  not known    {note}" for note in unverified]
    lines.append(f"  verdict      {_reason(found)}")
    return lines


def _held_against(found: Comparison) -> str:
    if found.preset is None:
        return "nothing is published of it"
    how = "" if found.named else " (nearest: the run names no preset of this task)"
    return f"preset {found.preset.name}{how}"


def _reason(found: Comparison) -> str:
    if found.verdict == "agrees":
        return "agrees: the published score is within the interval"
    if found.verdict == "differs":
        return "differs beyond the interval"
    reasons = [line.partition(":")[0] for line in found.differences]
    reasons += ["of a problem"] if found.run.problems else []
    reasons += ["no score is published"] if found.score is None else []
    reasons += [] if found.interval else ["there is no score of ours"]
    return f"not comparable because of: {', '.join(dict.fromkeys(reasons))}"


def status(found: Sequence[Comparison]) -> int:
    """Of the command: 0 all agree, 1 one differs beyond its interval, 3 one is not comparable."""
    verdicts = {each.verdict for each in found}
    if "differs" in verdicts:
        return 1
    return 3 if "not comparable" in verdicts or not found else 0
