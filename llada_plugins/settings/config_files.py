"""The files in configs/ that are made from the table, as text."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from .commands import lm_eval_arguments
from .table import Preset, all_presets

MADE = "made from the table of presets by python -m llada_plugins.presets write configs"
RUNS_CODE = "it executes the code of answers: run it in a container, with HF_ALLOW_CODE_EVAL=1"
PUBLISHED = "lmeval_published"
# files of configs/opencompass/models, and the presets that they stand for
MODELS = {
    "llada_8b_base": "llada-8b-base/gsm8k-256",
    "llada_8b_instruct": "llada-8b-instruct/gsm8k",
    "llada_1_5": "llada-1.5/gsm8k",
}


def files() -> dict[str, str]:
    """The text of every file, by its place below configs/."""
    presets = all_presets()
    found = {
        f"{PUBLISHED}/{name}.yaml": _lm_eval_run(name, group)
        for name, group in _by_config(presets.values()).items()
    }
    found["opencompass/presets.py"] = _opencompass_presets(presets.values())
    found["opencompass/datasets/published.py"] = _opencompass_datasets(presets.values())
    for name, preset in MODELS.items():
        found[f"opencompass/models/{name}.py"] = _opencompass_model(name, presets[preset])
    return found


# --- lm-eval


def _by_config(presets: Iterable[Preset]) -> dict[str, list[Preset]]:
    found: dict[str, list[Preset]] = defaultdict(list)
    for preset in presets:
        if preset.config:
            found[preset.config].append(preset)
    return found


def _lm_eval_run(name: str, group: Sequence[Preset]) -> str:
    """A file for `lm_eval run --config`: one preset, or several that differ in the task alone."""
    first = group[0]
    asked = [lm_eval_arguments(preset) for preset in group]
    run: dict[str, Any] = dict(asked[0] or {})
    run["tasks"] = [task for each in asked if each for task in each["tasks"]]
    run["output_path"] = f"outputs/{name}"
    if len(group) > 1:
        run["model_args"] = first.defaults
    lines = [line for key, text in _header(name, group) for line in _comment(key, text)]
    body = yaml.safe_dump(run, sort_keys=False, default_flow_style=None, width=100)
    return "\n".join([f"# {MADE}", *lines, body])


def _header(name: str, group: Sequence[Preset]) -> Iterator[tuple[str, str]]:
    """What a file says of itself, a key and a text each."""
    model = checkpoint(group[0])
    yield "Reproduces", f"{_titles(group)} of {model}: {_where(group) or 'no score is published'}"
    yield "Preset", ", ".join(preset.name for preset in group)
    yield "Command", f"lm_eval run --config configs/{PUBLISHED}/{name}.yaml"
    yield "Cost", cost(group[0])
    yield "Published", "; ".join(filter(None, map(_scores, group))) or "none"
    yield "Ours", "not run"
    for note in _unverified(group):
        yield "Note", f"{note}: not known"
    if group[0].task.executes_code:
        yield "Note", RUNS_CODE


def cost(preset: Preset) -> str:
    """What a run of it takes, in words."""
    weights = f"{preset.gigabytes:g} GB of weights in {preset.dtype}"
    if "estimator" in preset.options:
        return f"{preset.options['mc_num']} masked rows an answer; {weights}"
    rules = {"threshold", "threshold_entropy", "factor", "error_budget"}
    adaptive = preset.options.keys() & rules
    each = "at most a forward" if adaptive else "a forward"
    return f"{each} a token and row; {weights}"


def _titles(group: Sequence[Preset]) -> str:
    return ", ".join(dict.fromkeys(preset.task.title for preset in group))


def _where(group: Sequence[Preset]) -> str:
    return "; ".join(
        dict.fromkeys(score.source.where for preset in group for score in preset.scores)
    )


def _scores(preset: Preset) -> str:
    values = " / ".join(f"{score.value:g}" for score in preset.scores)
    return values and f"{preset.task.title} {values}"


def _unverified(group: Sequence[Preset]) -> list[str]:
    return list(dict.fromkeys(note for preset in group for note in preset.unverified))


def _comment(key: str, text: str) -> list[str]:
    """Lines of a header, the text of each below that of the first."""
    lines = textwrap.wrap(text, 86, break_long_words=False, break_on_hyphens=False)
    return [f"# {key + ':':<12}{lines[0]}", *(f"#{'':13}{line}" for line in lines[1:])]


# --- OpenCompass


def checkpoint(preset: Preset) -> str:
    """The checkpoint's name without its owner."""
    return preset.pretrained.rpartition("/")[2]


def short_task(preset: Preset) -> str:
    """How LLADA_TASKS names the task: gsm8k, mmlu_pro, …"""
    return preset.task.title.lower().replace("-", "_")


def _opencompass_presets(presets: Iterable[Preset]) -> str:
    rows = [_opencompass_row(preset) for preset in presets if preset.task.opencompass]
    return "\n".join(
        [
            '"""Presets with a task in OpenCompass; a fragment for read_base, data only.',
            "",
            f"{MADE}.",
            "",
            "reproduces  LLaDA's scores are of its authors' OpenCompass (a fork of 0.4.2) first;",
            "            others' of lm-eval or harnesses of their own with other prompts:",
            "            python -m llada_plugins.presets show NAME",
            "command     opencompass configs/eval_llada_published.py",
            "cost        see there",
            "published   `published`, percent",
            "ours        not run",
            '"""',
            "",
            "# usual: what LLADA_MODEL and LLADA_TASKS choose; LLADA_PRESET chooses any",
            "presets = [",
            *rows,
            "]",
            "",
        ]
    )


def _opencompass_row(preset: Preset) -> str:
    """One entry of the list, as the formatter would write it."""
    scores = [score.value for score in preset.scores]
    row: dict[str, Any] = {
        "preset": preset.name,
        "model": checkpoint(preset),
        "task": short_task(preset),
        "data": preset.task_name,
        "published": scores,
        "usual": _is_usual(preset),
    }
    inner = "".join(f"        {name}={_literal(value)},\n" for name, value in row.items())
    return f"    dict(\n{inner}    ),"


def _is_usual(preset: Preset) -> bool:
    """Is it reported of OpenCompass, or of anything where nothing of the model is?"""
    siblings = [each for each in all_presets().values() if each.model == preset.model]
    in_opencompass = {each.name for each in siblings if _reported(each, "opencompass")}
    if in_opencompass:
        return preset.name in in_opencompass
    return True


def _reported(preset: Preset, harness: str) -> bool:
    return any(score.source.harness == harness for score in preset.scores)


def _opencompass_datasets(presets: Iterable[Preset]) -> str:
    """A fragment that imports the data sets of all tasks."""
    tasks = {preset.task_name: preset.task.opencompass for preset in presets}
    known = {name: task for name, task in tasks.items() if task is not None}
    found = {(task.config, task.variable) for task in known.values()}
    places = sorted(found, key=lambda place: place[0].lower())  # as ruff sorts imports
    imports = [_import(config, variable) for config, variable in places]
    table = [f'    "{name}": {_alias(task.config)},' for name, task in known.items()]
    return "\n".join(
        [
            '"""Data sets of published settings by names of tasks; a fragment for read_base.',
            "",
            f"{MADE}.",
            '"""',
            "",
            "from mmengine.config import read_base",
            "",
            "with read_base():",
            *imports,
            "",
            "datasets_of = {",
            *table,
            "}",
            "",
        ]
    )


def _import(config: str, variable: str) -> str:
    """A data set config, under a name of its own."""
    start = f"    from opencompass.configs.datasets.{config.replace('/', '.')} import"
    name = f"{variable} as {_alias(config)}"
    line = f"{start} {name}"
    return line if len(line) <= 100 else f"{start} (\n        {name},\n    )"


def _alias(config: str) -> str:
    return config.rpartition("/")[2].lower()


def _opencompass_model(name: str, preset: Preset) -> str:
    """An entry for `opencompass --models`, with the options of one preset."""
    options = ", ".join(f"{key}={_literal(value)}" for key, value in preset.options.items())
    reproduces = textwrap.wrap(_where([preset]), 84)
    begin = f'        abbr="{checkpoint(preset)}-"'
    rest = '+ "-".join(f"{option}={value}" for option, value in sampler.items()),'
    line = f"{begin} {rest}"
    abbr = [line] if len(line) <= 100 else [begin, f"        {rest}"]
    return "\n".join(
        [
            f'"""{checkpoint(preset)} with the options of the preset {preset.name}.',
            "",
            f"{MADE}.",
            "",
            f"reproduces  {reproduces[0]}",
            *(f"            {line}" for line in reproduces[1:]),
            f"command     opencompass --config-dir configs/opencompass --models {name} \\\\",
            "                --datasets gsm8k_gen",
            "            (other tasks have settings of their own: configs/eval_llada_published.py)",
            f"cost        {cost(preset)}",
            f"published   {_scores(preset)}",
            "ours        not run",
            '"""',
            "",
            "from llada_plugins.opencompass_models import LLaDA",
            "",
            f"sampler = dict({options})",
            "models = [",
            "    dict(",
            "        type=LLaDA,",
            *abbr,
            f'        path="{preset.pretrained}",',
            f"        chat={preset.chat},",
            "        batch_size=8,",
            "        run_cfg=dict(num_gpus=1),",
            "        **sampler,",
            "    )",
            "]",
            "",
        ]
    )


def _literal(value: Any) -> str:
    """A plain value as Python source with double quotes."""
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    assert not isinstance(value, Mapping)
    return repr(value)
