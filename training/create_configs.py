"""Commented files for --config: every flag of every training command, help and default.

python -m training.create_configs --output configs/training
python -m training.sft --config configs/training/sft.yaml
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

from llada_plugins.files.atomic import whole_folder
from llada_plugins.options.command_line import run_command
from llada_plugins.options.fields import arg
from training import distill, pretrain, prm_sft, remask_sft, router_sft, sft
from training.runs.arguments import RunArguments

COMMANDS: dict[str, tuple[type, Mapping[str, Any]]] = {
    command.name: (command.options, command.presets)
    for command in (
        pretrain.COMMAND,
        sft.COMMAND,
        distill.COMMAND,
        remask_sft.COMMAND,
        router_sft.COMMAND,
        prm_sft.COMMAND,
    )
}

HEADER = """\
Flags of python -m training.{name}, for: python -m training.{name} --config {name}.yaml
Lines "#name: value" are flags at their defaults: remove the # to set one. A flag of the \
command line wins over this file, this file
over the preset."""


@dataclass(frozen=True, kw_only=True)
class ConfigsOptions:
    """Where the files go."""

    output: str = arg(help="folder to write, one file a command; must not hold anything")


def config_text(name: str) -> str:
    """The file of a command; as it is, the command's first preset."""
    options, command_presets = COMMANDS[name]
    chosen = {"preset": next(iter(command_presets)), "output_dir": f"outputs/{name}"}
    own = RunArguments.__annotations__
    run = [field for field in fields(RunArguments) if field.init]
    ours = [field for field in run if field.name in own]
    theirs = [field for field in run if field.name not in own]
    sections: dict[str, Iterable[Field[Any]]] = {
        "What is trained on what": fields(options),
        "The run": ours,
        "The run: transformers' TrainingArguments": theirs,
    }
    text = _comment(HEADER.format(name=name))
    for title, section in sections.items():
        text += f"\n{_comment(f'--- {title} ---')}\n" + "\n".join(_flags(section, chosen))
    return text


def _flags(section: Iterable[Field[Any]], chosen: Mapping[str, str]) -> Iterable[str]:
    for field in section:
        value = chosen.get(field.name, _default(field))
        help_text = " ".join(field.metadata["help"].replace("%%", "%").split())
        mark = "" if field.name in chosen else "#"
        yield _comment(help_text) + f"{mark}{field.name}: {_scalar(value)}\n"


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _scalar(value: Any) -> str:
    import yaml

    value = value.value if isinstance(value, Enum) else value
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _comment(text: str) -> str:
    lines = [line for paragraph in text.split("\n") for line in textwrap.wrap(paragraph, 136)]
    return "".join(f"# {line}\n" for line in lines)


def write(options: ConfigsOptions) -> str:
    """Write every file; returns where."""
    with whole_folder(Path(options.output)) as folder:
        for name in COMMANDS:
            (folder / f"{name}.yaml").write_text(config_text(name), encoding="utf-8")
    return f"{options.output}: {', '.join(f'{name}.yaml' for name in COMMANDS)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(ConfigsOptions, "python -m training.create_configs", write, argv)


if __name__ == "__main__":
    sys.exit(main())
