"""Flags from a file: what create_configs writes is read back unchanged, who wins, what
is refused and how it is said.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from llada_plugins.options.fields import names
from training import create_configs, sft
from training.create_configs import COMMANDS, config_text
from training.runs import launch
from training.runs.arguments import RunArguments


def model_flags(name: str) -> list[str]:
    """What every command needs in place of a preset."""
    return ["--model", "tiny", "--dataset" if name == "pretrain" else "--data", "x.jsonl"]


def parsed(name: str, *flags: str):
    options, presets = COMMANDS[name]
    chosen, arguments = launch.parse(options, "", list(flags), presets)
    return chosen, {
        key: value for key, value in arguments.to_dict().items() if key != "logging_dir"
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_a_written_file_is_the_first_preset(tmp_path, name):
    (tmp_path / "file.yaml").write_text(config_text(name))
    assert parsed(name, "--config", str(tmp_path / "file.yaml")) == parsed(
        name, "--preset", next(iter(COMMANDS[name][1])), "--output_dir", f"outputs/{name}"
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_commented_default_is_the_default(tmp_path, name):
    text = re.sub("^preset: .*$", "preset: null", config_text(name), flags=re.M)
    text = re.sub(r"^#(\w+: )", r"\1", text, flags=re.M)
    values = yaml.safe_load(text)
    options, _ = COMMANDS[name]
    known = [field.name for field in RunArguments.__dataclass_fields__.values() if field.init]
    assert list(values)[: len(names(options))] == names(options)
    assert sorted(values) == sorted([*names(options), *known])
    (tmp_path / "file.yaml").write_text(text)
    flags = model_flags(name)
    assert parsed(name, *flags, "--config", str(tmp_path / "file.yaml")) == parsed(
        name, *flags, "--output_dir", f"outputs/{name}"
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_has_its_help_above_it(name):
    lines = config_text(name).splitlines()
    flags = [number for number, line in enumerate(lines) if re.match(r"#?\w+: ", line)]
    assert len(flags) > 100 and all(re.match(r"# \S", lines[number - 1]) for number in flags)
    assert max(map(len, lines)) <= 140


def test_every_training_command_has_a_file():
    places = Path(create_configs.__file__).parent.glob("*.py")
    assert sorted(path.stem for path in places if "= Command(" in path.read_text()) == sorted(
        COMMANDS
    )


def test_the_command_writes_a_folder_once(tmp_path, capsys):
    assert create_configs.main(["--output", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"{name}.yaml" for name in COMMANDS
    }
    with pytest.raises(SystemExit, match="not empty"):
        create_configs.main(["--output", str(tmp_path / "out")])


@pytest.mark.parametrize(
    "suffix, text",
    [
        (
            ".yaml",
            "preset: sudoku4\nmax_steps: 7\nlearning_rate: 5e-4\neval_strategy: no\nbf16: "
            "false\nlabel_names: [a, b]\nrun_name: -x\n"
            "lr_scheduler_kwargs: {num_cycles: 2}\nseed:  # nothing: as if absent\n",
        ),
        (
            ".json",
            '{"preset": "sudoku4", "max_steps": 7, "learning_rate": 5e-4, "eval_strategy": "no", '
            '"bf16": false, "run_name": "-x", '
            '"label_names": ["a", "b"], "lr_scheduler_kwargs": {"num_cycles": 2}, "seed": null}',
        ),
    ],
)
def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path, suffix, text):
    path = tmp_path / f"file{suffix}"
    path.write_text(text)
    options, arguments = parsed(
        "sft", "--max_steps", "9", "--config", str(path), "--output_dir", "out"
    )
    assert options.preset == "sudoku4"
    expected = dict(
        max_steps=9,
        learning_rate=5e-4,
        eval_strategy="no",
        bf16=False,
        label_names=["a", "b"],
        run_name="-x",
        lr_scheduler_kwargs={"num_cycles": 2},
        seed=0,
        warmup_steps=100,
        output_dir="out",
    )
    assert {name: arguments[name] for name in expected} == expected


@pytest.mark.parametrize(
    "name, text", [("a.json", '{"max_steps": 7}'), ("a.yaml", "max_steps: 7\n")]
)
def test_a_byte_order_mark_is_no_text(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert (
        parsed(
            "sft", "--preset", "sudoku4", "--output_dir", "out", "--config", str(tmp_path / name)
        )[1]["max_steps"]
        == 7
    )


@pytest.mark.parametrize(
    "name, text, message",
    [
        (
            "a.yaml",
            "learning_rat: 1",
            "a.yaml: unknown flag 'learning_rat' (did you mean 'learning_rate'?); --help lists "
            "them",
        ),
        (
            "a.yaml",
            "no_append_eos: true",
            "a.yaml: unknown flag 'no_append_eos' (did you mean 'append_eos'?)",
        ),
        ("a.json", '{"sft": {"max_steps": 1}}', "a.json: unknown flag 'sft'"),
        ("a.yaml", "config: b.yaml", "a.yaml: unknown flag 'config'"),
        ("a.yaml", "max_steps: many", "a.yaml: max_steps: invalid literal for int()"),
        ("a.yaml", "append_eos: perhaps", "a.yaml: append_eos: Truthy value expected"),
        ("a.yaml", "seed: [1, 2]", "a.yaml: seed: one value is expected, found a list of 2"),
        ("a.yaml", "- preset", "a.yaml: expected flags as NAME: VALUE, found list"),
        ("a.yaml", "a: b: c", "a.yaml: not YAML: "),
        ("a.json", "{preset: 1}", "a.json: not JSON: "),
        ("a.toml", "preset = 1", "a.toml: give a .yaml, .yml or .json file"),
        ("a.yaml", None, "a.yaml: no such file"),
    ],
)
def test_a_bad_file_ends_with_one_line_that_names_it(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as exit_info:
        sft.main(["--config", str(tmp_path / name), "--output_dir", str(tmp_path / "out")])
    line = str(exit_info.value.code)
    assert line.startswith("error: ") and message in line and "\n" not in line


def test_a_run_keeps_what_its_file_said(tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "1234", "completion": "4321"}\n' * 4)
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: tiny\ndata: {data}\nmax_steps: 1\nper_device_train_batch_size: 2\nsave_strategy: "
        "no\nuse_cpu: true\n"
    )
    sft.main(["--config", str(config), "--output_dir", str(tmp_path / "out")])
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["config"] == yaml.load(config.read_text(), yaml.BaseLoader)
    assert run["arguments"]["max_steps"] == 1
    assert run["command"] == [
        "python",
        "-m",
        "training.sft",
        "--config",
        str(config),
        "--output_dir",
        str(tmp_path / "out"),
    ]
