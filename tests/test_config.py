"""Options from command lines and harnesses: strings and floats become what the field
declares, unknown names are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import pytest

from benchmarks import ala_report
from llada_plugins import chat, evaluate, ups_report
from llada_plugins.engine.asked import option_classes
from llada_plugins.engine.config import EngineConfig
from llada_plugins.methods.prm import PRMOptions
from llada_plugins.methods.table import METHODS
from llada_plugins.options.fields import PUBLISHED, arg, build, names, reject_unknown, split
from llada_plugins.sampling.config import SamplerConfig
from training import convert, merge, step_data
from training.runs.options import FineTuningOptions
from training.runs.remask_options import RemaskOptions


@dataclass(frozen=True, kw_only=True)
class Options:
    """One field of every declared kind."""

    whole: int = arg(1, "whole")
    number: float = arg(0.5, "number")
    switch: bool = arg(False, "switch")
    text: str = arg("a", "text")
    kind: Literal["x", "y"] = arg("x", "kind")
    maybe_whole: int | None = arg(None, "maybe_whole")
    maybe_kind: Literal["x", "y"] | None = arg(None, "maybe_kind")
    maybe_text: str | None = arg(None, "maybe_text")
    several: tuple[int, ...] = arg((), "several")
    either: int | str | None = arg(None, "either")


@dataclass(frozen=True, kw_only=True)
class Required:
    """A field without a default."""

    path: str = arg(help="path")
    depth: int = arg(2, "depth")


ACCEPTED = [
    ("whole", "8", 8),
    ("whole", 8.0, 8),
    ("whole", "8.0", 8),
    ("whole", "-3", -3),
    ("whole", "1e3", 1000),
    ("whole", str(2**62 + 1), 2**62 + 1),  # beyond what a double holds
    ("number", "0.25", 0.25),
    ("number", 1, 1.0),
    ("number", "1e-3", 1e-3),
    ("switch", "true", True),
    ("switch", "False", False),
    ("switch", True, True),
    ("switch", 1, True),
    ("switch", "0", False),
    ("text", "b", "b"),
    ("text", 3, "3"),
    ("kind", "y", "y"),
    ("maybe_whole", None, None),
    ("maybe_whole", "None", None),
    ("maybe_whole", "none", None),
    ("maybe_whole", "4", 4),
    ("maybe_kind", "none", None),
    ("maybe_kind", "x", "x"),
    ("maybe_text", "none", None),
    ("maybe_text", "no", "no"),
    ("several", "1,2", (1, 2)),
    ("several", [1, 2.0], (1, 2)),
    ("several", (), ()),
    ("either", "5", 5),
    ("either", "five", "five"),
    ("either", "none", None),
]
REFUSED = [
    ("whole", "8.5", "whole must be a whole number, got '8.5'"),
    ("whole", 8.5, "whole must be a whole number, got 8.5"),
    ("whole", "many", "whole must be a whole number, got 'many'"),
    ("whole", True, "whole must be a whole number, got True"),
    ("whole", None, "whole must be a whole number, got None"),
    ("whole", "none", "whole must be a whole number, got 'none'"),
    ("whole", "", "whole must be a whole number, got ''"),
    ("whole", "inf", "whole must be a whole number, got 'inf'"),
    ("whole", [8], "whole must be a whole number, got [8]"),
    ("number", 10**309, f"number must be a number, got {10**309}"),  # no float is as large
    ("number", "high", "number must be a number, got 'high'"),
    ("number", False, "number must be a number, got False"),
    ("number", "nan", "number must be a number, got 'nan'"),
    ("number", "inf", "number must be a number, got 'inf'"),
    ("number", None, "number must be a number, got None"),
    ("switch", "yes", "switch must be true or false, got 'yes'"),
    ("switch", 2, "switch must be true or false, got 2"),
    ("switch", None, "switch must be true or false, got None"),
    ("text", None, "text must be a string, got None"),
    ("text", ["b"], "text must be a string, got ['b']"),
    ("kind", "z", "kind must be one of 'x', 'y', got 'z'"),
    ("maybe_whole", "x", "maybe_whole must be a whole number, got 'x'"),
    ("maybe_kind", "z", "maybe_kind must be one of 'x', 'y', got 'z'"),
    ("several", "1,x", "several must be a whole number, got 'x'"),
]


@pytest.mark.parametrize("name, given, expected", ACCEPTED)
def test_a_value_becomes_the_declared_type(name, given, expected):
    value = getattr(build(Options, {name: given}), name)
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize("name, given, message", REFUSED)
def test_a_wrong_value_is_refused_with_name_kind_and_value(name, given, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build(Options, {name: given})


def test_an_unknown_name_is_refused_with_the_nearest_known_one():
    with pytest.raises(
        ValueError,
        match=r"^unknown option 'treshold' \(did you mean 'threshold'\?\); known: alg_temp, "
        r"answer_end, ",
    ):
        split({"treshold": 0.9}, SamplerConfig)
    with pytest.raises(
        ValueError,
        match=r"^unknown sampler options 'qqq', 'step' \(did you mean 'steps'\?\); known: ",
    ):
        split({"qqq": 1, "step": 2, "gen_length": 8}, SamplerConfig, what="sampler option")
    reject_unknown({"steps": 4}, names(SamplerConfig))


@pytest.mark.parametrize(
    "command",
    [
        convert.main,
        step_data.main,
        merge.main,
        ups_report.main,
        ala_report.main,
        chat.main,
        evaluate.main,
    ],
    ids=lambda command: command.__module__,
)
def test_every_command_names_the_nearest_flag_first(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        command(["--outptu", "x", "--modle=y"])
    near = r"( \(did you mean '(output|mod)\w*'\?\))?"
    message = (
        f"error: unknown (flag|llada option)s 'outptu'{near}, 'modle'{near}; --help lists them"
    )
    assert re.fullmatch(message, exit_info.value.code) and capsys.readouterr() == ("", "")


def test_split_gives_each_class_its_own_fields():
    required, options = split({"path": "here", "whole": "3"}, Required, Options)
    assert required == Required(path="here") and options == Options(whole=3)


def test_build_takes_what_is_not_given_from_the_base():
    base = SamplerConfig(gen_length=64, temperature=0.5)
    assert build(SamplerConfig, {"gen_length": "32"}, base) == SamplerConfig(
        gen_length=32, temperature=0.5
    )
    assert build(SamplerConfig, {}, base) == base
    # names are checked by split and reject_unknown
    assert build(Options, {"whole": 2, "not_a_field": 1}) == Options(whole=2)


def test_rules_of_the_class_hold_for_built_values():
    with pytest.raises(ValueError, match="gen_length must be at least 1, got 0"):
        build(SamplerConfig, {"gen_length": "0"})


def test_every_option_states_its_help():
    from llada_plugins.engine.config import EngineConfig

    for cls in (SamplerConfig, EngineConfig):
        for field in cls.__dataclass_fields__.values():
            assert field.metadata["help"], field.name
    # one flat mapping serves both
    assert len(set(names(SamplerConfig, EngineConfig))) == len(names(SamplerConfig, EngineConfig))


OURS = {name for method in METHODS for name in names(*option_classes(method))}


@pytest.mark.parametrize(
    ("published", "own"),
    [
        ("max_new_tokens", "gen_length"),
        ("block_size", "block_length"),
        ("model_path", "pretrained"),
        ("cfg", "cfg_scale"),
        ("is_check_greedy", "greedy_check"),
        ("batch_size_", "batch_size"),
        ("gen_blocksize", "block_length"),
        ("mask_token_id", "mask_id"),
        ("gen_steps", "steps"),
        ("use_cache", "cache=prefix"),
        ("alg", "confidence_source"),
    ],
)
def test_a_published_name_is_told_with_ours(published, own):
    told = rf"^unknown option '{published}' \(did you mean '{own}'\?\)"
    with pytest.raises(ValueError, match=told):
        reject_unknown([published], OURS)


def test_hints_for_published_names_are_options_and_none_hides_one():
    for published, hints in PUBLISHED.items():
        hints = {hint.partition("=")[0] for hint in hints.split()}
        # of OpenCompass' model entries three, of lm-eval's requests one
        assert hints <= OURS | {"path", "max_seq_len", "stop_words", "until"}
        assert published not in OURS or hints <= {"path", "max_seq_len"}  # OpenCompass' own names


def test_a_published_name_is_no_hint_where_ours_is_unknown():
    with pytest.raises(ValueError, match=r"^unknown flag 'max_new_tokens'; known: learning_rate$"):
        reject_unknown(["max_new_tokens"], ["learning_rate"], "flag")


@pytest.mark.parametrize(
    "options, given, message",
    [
        (EngineConfig, dict(max_length=0), "max_length"),
        (EngineConfig, dict(likelihood_log="/nowhere/log"), "likelihood_log"),
        (PRMOptions, dict(prm_batch_size=0), "prm_batch_size"),
        (PRMOptions, dict(num_candidates_per_block=0), "num_candidates_per_block"),
        (PRMOptions, dict(question_pattern="no group"), "question_pattern"),
        (RemaskOptions, dict(preset="a", data="b"), "a preset brings its own data"),
        (RemaskOptions, dict(model="tiny", data="x", lora=True, lora_r=0), "lora_r"),
        (RemaskOptions, dict(model="tiny", data="x", ups_width=-1), "ups_width"),
        (FineTuningOptions, dict(model="tiny", data="x", lora=True, lora_dropout=2.0), "lora_drop"),
    ],
)
def test_options_that_extend_several_classes_keep_the_rules_of_each(options, given, message):
    with pytest.raises(ValueError, match=message):
        options(**given)
