"""What benchmarks.gpu found, as a table and as a plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llada_plugins.reports.render import pyplot


def table(result: Mapping[str, Any]) -> str:
    """Everything that was measured as text, and what was not run."""
    machine, ceiling, sections = result["machine"], result["ceiling"], result["sections"]
    lines = [
        f"{result['shape']['name']}, {machine['dtype']}, {machine['device']}, torch "
        f"{machine['torch']}, CUDA {machine['cuda']}: {machine['clock']} time, "
        f"{result['total_seconds']:.0f} s in all",
        f"ceiling: {ceiling['flops'] / 1e12:.3g} TFLOP/s, {ceiling['bandwidth'] / 1e12:.3g} TB/s",
    ]
    if ceiling["lasting_flops"] is not None:
        lines[-1] += f" ({ceiling['lasting_flops'] / 1e12:.3g} after a second of products)"
    for name, found in sections.items():
        lines += ["", f"{name} ({result['section_seconds'][name]:.0f} s)", *TABLES[name](found)]
    lines += [f"\n{name} failed: {reason}" for name, reason in result["failed"].items()]
    if result["not_run"]:
        lines += ["", f"not run, for want of time: {', '.join(result['not_run'])}"]
    return "\n".join(lines)


def _steps(found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{'form and rows':<28}{'median ms':>12}{'floor ms':>12}{'x floor':>9}"
        f"{'products alone':>16}{'kernels':>9}{'idle %':>8}"
    ]
    for name, each in found.items():
        floor = each["floor"]
        lines.append(
            f"{name:<28}{1000 * each['seconds']:>12.2f}{1000 * floor:>12.2f}"
            f"{each['seconds'] / floor:>9.2f}{each['product_seconds'] / floor:>16.2f}"
            f"{each['num_calls']:>9}{100 * each['idle_share']:>8.0f}"
        )
    return lines


def _compiled(found: Mapping[str, Any]) -> list[str]:
    if "lack" in found:
        return [f"not run: {found['lack']}"]
    forms = {name: each for name, each in found.items() if name != "compile_seconds"}
    return [f"compiling took {found['compile_seconds']:.1f} s", *_steps(forms)]


def _block_causal(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for shape, each in found.items():
        if "lack" in each:
            lines.append(f"{shape}: not run: {each['lack']}")
            continue
        lines += [f"{shape}:", *_steps(each["eager"]), "compiled layers:"]
        lines += _compiled(each["compiled"])
    return lines


def _published(found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{name:<24}{ratio:>8.2f} times the published loop's speed"
        for name, ratio in found["ratios"].items()
    ]
    share = f"same greedy tokens: {100 * found['same_share']:.0f} %"
    if found["same_share"] < 1 and found["same_in_float32"]:
        share += ", 100 % in float32: the published loop ranks in the weights' precision"
    return [*lines, share]


def _answers(found: Mapping[str, Any]) -> list[str]:
    if "lack" in found:
        return [f"not run: {found['lack']}"]
    return [
        f"{'rows: ' + rows:<20}{each['tokens_per_second']:>12.1f} tokens/s"
        f"{each['forwards_per_second']:>12.1f} forwards/s"
        for rows, each in found.items()
    ]


def _likelihood(found: Mapping[str, float]) -> list[str]:
    return [
        f"{name:<20}{rate:>12.1f} masked rows/s{rate / found['published']:>9.2f} x published"
        for name, rate in found.items()
    ]


def _quantised(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for method, forms in found.items():
        if "lack" in forms:
            lines.append(f"{method}: not run: {forms['lack']}")
        else:
            lines += _steps({f"{method} {name}": each for name, each in forms.items()})
    return lines


def _training(found: Mapping[str, Any]) -> list[str]:
    return [
        f"{kind:<32}not run: {each['lack']}"
        if "lack" in each
        else f"{kind:<32}{each['tokens_per_second']:>12.0f} tokens/s"
        f"{100 * each['flop_utilisation']:>8.1f} % of the ceiling"
        for kind, each in found.items()
    ]


TABLES = {
    "steps": _steps,
    "compiled": _compiled,
    "block_causal": _block_causal,
    "published": _published,
    "answers": _answers,
    "compiled_answers": _answers,
    "likelihood": _likelihood,
    "quantised": _quantised,
    "training": _training,
}


def draw(result: Mapping[str, Any], file: Path) -> None:
    """Time over floor of every step, eager and compiled."""
    plot = pyplot()
    figure, axes = plot.subplots(figsize=(8, 5), layout="constrained")
    for offset, section in enumerate(("steps", "compiled")):
        found = result["sections"].get(section, {})
        forms = {name: each for name, each in found.items() if isinstance(each, dict)}
        ratios = [each["seconds"] / each["floor"] for each in forms.values()]
        places = [place + 0.4 * offset for place in range(len(forms))]
        bars = axes.barh(places, ratios, height=0.38, label=section)
        axes.bar_label(bars, fmt="%.2f")
        if section == "steps":
            axes.set_yticks(places, list(forms))
    axes.axvline(1, color="grey", linestyle=":")
    axes.invert_yaxis()
    axes.set(xlabel="time of a step over its floor", title=result["machine"]["device"])
    axes.legend()
    figure.savefig(file, dpi=120)
    plot.close(figure)
