"""llada_ups: which policy stream an Engine has, what it then does by default, what it
refuses, and the same answers from both harnesses.
"""

from __future__ import annotations

import csv
import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from llada_plugins.engine.engine import Engine, Request
from llada_plugins.methods.policy_head import PolicyHead, save_policy
from llada_plugins.models.fingerprint import backbone_fingerprint
from llada_plugins.models.loading import load_model, save_model
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.tasks import sudoku
from tests.commands import stock

pytestmark = pytest.mark.floats

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
PROMPTS = ["one", "a longer prompt", "x", "two"]
SMALL = dict(gen_length=12, steps=6)
LIGHT = "light head: 'ups' ranks visible tokens by sigmoid(h), masked ones by probability"
OWN = "RemeDi's bi-tower: 'ups' is the paper's rule, h at every position"


def write_head(folder: Path, checkpoint: Path, seed: int = 0) -> Path:
    """A random head for the checkpoint."""
    model, generator = load_model(checkpoint, device="cpu"), torch.Generator().manual_seed(seed)
    head = PolicyHead(model.config.d_model, 16)
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    save_policy(head, folder, backbone_fingerprint(model))
    return folder


@pytest.fixture(scope="module")
def head(tiny_checkpoint, tmp_path_factory) -> Path:
    """A head that is not beside its checkpoint; for reading only."""
    return write_head(tmp_path_factory.mktemp("head") / "somewhere", tiny_checkpoint)


@pytest.fixture(scope="module")
def beside(tiny_checkpoint, tmp_path_factory) -> Path:
    """A checkpoint with a head in its folder `ups`; for reading only."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("beside") / "model"))
    write_head(folder / "ups", folder)
    return folder


@pytest.fixture
def make(tiny_checkpoint):
    """A function from options to an engine, by default llada_ups on the tiny
    checkpoint, which has no head.
    """

    def engine(
        method: str = "llada_ups",
        *,
        pretrained: Path = tiny_checkpoint,
        ups: Path | None = None,
        **options,
    ) -> Engine:
        own = {} if ups is None else {"ups": str(ups)}
        return Engine(method, pretrained=str(pretrained), device="cpu", **own, **options)

    return engine


def answers(
    engine: Engine, sampler: SamplerConfig | None = None, prompts: list[str] = PROMPTS
) -> list[str]:
    found = dict(
        engine.generate([Request(prompt, sampler or engine.sampler) for prompt in prompts])
    )
    return [found[number].text for number in range(len(prompts))]


def rules(sampler: SamplerConfig) -> tuple[str, bool, float | None]:
    return sampler.source, sampler.revise, sampler.revise_below


# ---- where the stream comes from


def test_without_a_head_remasking_falls_back_to_token_probability_and_says_so_once(make, caplog):
    with caplog.at_level(logging.WARNING, "llada_plugins"):
        engine = make(**SMALL)
        found = answers(engine)
        answers(engine, engine.sampler_for({"steps": 3}))
    assert rules(engine.sampler) == ("tps_prob", True, None) and engine.prepared.policy is None
    (said,) = [record.getMessage() for record in caplog.records if "UPS" in record.getMessage()]
    assert "no UPS head" in said
    assert "falls back to confidence_source=tps_prob" in said
    assert str(engine.folder) in said
    assert found == answers(make("llada", revise=True, confidence_source="tps_prob", **SMALL))
    # the same weights, decoded without taking tokens back
    assert found != answers(make("llada", **SMALL))


def test_a_head_beside_the_checkpoint_is_found_and_equals_the_same_head_given_by_name(
    make, head, beside, caplog
):
    with caplog.at_level(logging.WARNING, "llada_plugins"):
        found, given = make(pretrained=beside, **SMALL), make(ups=head, **SMALL)
    assert not caplog.records
    assert rules(found.sampler) == rules(given.sampler) == ("ups", True, None)
    assert found.prepared.policy == given.prepared.policy == LIGHT
    assert answers(found) == answers(given) != answers(make(**SMALL))


def test_a_head_given_by_name_goes_before_the_one_beside_the_checkpoint(make, beside, tmp_path):
    other = write_head(tmp_path / "other", beside, seed=1)
    found = answers(make(pretrained=beside, ups=other, **SMALL))
    assert found == answers(make(ups=other, **SMALL)) != answers(make(pretrained=beside, **SMALL))


def test_the_plain_method_does_not_look_at_a_head(make, beside):
    engine = make("llada", pretrained=beside, **SMALL)
    assert rules(engine.sampler) == ("tps_prob", False, None) and engine.info()["policy"] is None
    assert answers(engine) == answers(make("llada", **SMALL))


def test_a_bi_tower_brings_its_own_stream_under_either_name(make, bi_tower):
    engine = make(pretrained=bi_tower, **SMALL)
    assert rules(engine.sampler) == ("ups", True, None) and engine.prepared.policy == OWN
    by_hand = dict(revise=True, confidence_source="ups_all", **SMALL)
    assert (
        answers(engine)
        == answers(make("llada", pretrained=bi_tower, **by_hand))
        != answers(make("llada", pretrained=bi_tower, **SMALL))
    )
    assert rules(make("llada", pretrained=bi_tower, **SMALL).sampler) == ("tps_prob", False, None)


# it was trained at masked positions too
def test_a_bi_tower_may_rank_proposals_without_revision(make, bi_tower):
    assert make("llada", pretrained=bi_tower, confidence_source="ups").sampler.source == "ups"


# ---- defaults


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, ("ups", True, None)),
        (dict(threshold=0.9), ("ups", False, 0.5)),
        (dict(factor=1.0), ("ups", False, 0.5)),
        (dict(error_budget=0.1), ("ups", False, 0.5)),
        (dict(threshold=0.9, revise_below=0.2), ("ups", False, 0.2)),
        (dict(threshold=0.9, max_forwards=4), ("ups", False, 0.5)),
        (dict(threshold=0.9, confidence_source="margin"), ("margin", False, 0.5)),
        (
            dict(threshold=0.9, revise_below=None, confidence_source="tps_prob"),
            ("tps_prob", False, None),
        ),
        (dict(threshold=None), ("ups", True, None)),
        (dict(remask_ratio=0.5), ("ups", False, None)),
        (dict(confidence_source="tps_prob"), ("tps_prob", True, None)),
        (dict(confidence_source="ups_all"), ("ups_all", True, None)),
        (dict(remasking="random"), ("random", True, None)),
        (dict(remasking="low_confidence"), ("tps_prob", True, None)),
        (dict(revise=True), ("ups", True, None)),
        (dict(revise=False), ("tps_prob", False, None)),  # plain decoding, asked for by name
        (dict(revise=False, confidence_source="tps_prob"), ("tps_prob", False, None)),
        # as a command line hands it over
        (dict(revise="false", confidence_source="tps_prob"), ("tps_prob", False, None)),
        (dict(revise=False, confidence_source="ups_all"), ("ups_all", False, None)),
        (dict(revise=False, threshold=0.9), ("ups", False, 0.5)),
    ],
    ids=str,
)
def test_what_is_given_goes_before_the_methods_defaults(make, beside, options, expected):
    engine = make(pretrained=beside, gen_length=12, **options)
    assert rules(engine.sampler) == expected
    # given with the request instead
    assert rules(make(pretrained=beside, gen_length=12).sampler_for(options)) == expected
    assert engine.sampler_for({}) == engine.sampler


def test_a_requests_options_decide_the_defaults_anew(make, beside):
    engine = make(pretrained=beside, threshold=0.9, gen_length=12)
    assert rules(engine.sampler_for({})) == ("ups", False, 0.5)
    assert rules(engine.sampler_for({"threshold": None})) == ("ups", True, None)
    assert rules(engine.sampler_for({"threshold": "none", "steps": 4}, 24)) == ("ups", True, None)
    assert rules(engine.sampler_for({"revise_below": 0.3})) == ("ups", False, 0.3)
    assert rules(engine.sampler_for({"confidence_source": "tps_prob"})) == ("tps_prob", False, 0.5)
    plain = make("llada", threshold=0.9)
    assert rules(plain.sampler_for({})) == rules(plain.sampler) == ("tps_prob", False, None)


def test_the_default_schedule_of_ups_is_remedis(make, beside):
    engine = make(pretrained=beside, gen_length=12, block_length=6, steps=4)
    assert engine.sampler == SamplerConfig(
        gen_length=12,
        block_length=6,
        steps=4,
        confidence_source="ups",
        revise=True,
        early_stop=True,
    )


# ---- what is refused

NO_STREAM = (
    "needs an unmasking-policy stream, and there is none: use llada_ups with ups=FOLDER, "
    "or a RemeDi checkpoint"
)
MISTAKES = {
    "ups without a head": (dict(confidence_source="ups"), f"confidence_source='ups' {NO_STREAM}"),
    "ups_all without a head": (
        dict(confidence_source="ups_all"),
        f"confidence_source='ups_all' {NO_STREAM}",
    ),
    "plain method": (
        dict(method="llada", confidence_source="ups", revise=True),
        f"confidence_source='ups' {NO_STREAM}",
    ),
    "plain method, LLaDA's name": (
        dict(method="llada", remasking="ups"),
        f"confidence_source='ups' {NO_STREAM}",
    ),
    "an option of another method": (dict(method="llada", ups="x"), r"unknown option 'ups'"),
    "misspelt": (dict(up="x"), r"unknown option 'up' \(did you mean 'ups'\?\); known: .*\bups\b"),
    "no such folder": (
        dict(ups="no/such/folder"),
        r"no/such/folder has no ups_config.json: give the folder of a head",
    ),
    "not a number": (
        dict(revise_below="half", threshold=0.9),
        r"revise_below must be a number, got 'half'",
    ),
    "not a truth": (dict(revise="maybe"), r"revise must be true or false, got 'maybe'"),
    "no method": (dict(method="ups"), r"method must be one of llada, llada_ups.*got 'ups'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_policy_that_is_not_there_is_told_in_one_line(make, mistake):
    options, message = MISTAKES[mistake]
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        make(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [dict(revise=False, confidence_source="ups"), dict(threshold=0.9, revise_below=None)],
    ids=str,
)
def test_a_light_head_that_could_change_nothing_is_refused(make, beside, options):
    message = (
        "with these options none is ever masked again: set revise=true, or revise_below with "
        "an adaptive rule such as threshold"
    )
    with pytest.raises(ValueError, match=message):
        make(pretrained=beside, **options)
    engine = make(pretrained=beside, gen_length=12)
    with pytest.raises(ValueError, match=message):  # by the request, before any forward
        next(
            engine.generate(
                [Request("one", engine.sampler), Request("two", engine.sampler_for(options))]
            )
        )


def test_a_request_for_a_stream_that_is_not_there_is_refused_before_any_forward(make):
    engine = make(**SMALL)
    engine.denoise = None
    with pytest.raises(ValueError, match=NO_STREAM):
        next(
            engine.generate(
                [
                    Request("one", engine.sampler),
                    Request("two", engine.sampler_for({"confidence_source": "ups"})),
                ]
            )
        )


def test_a_head_beside_a_bi_tower_is_refused(make, bi_tower, head):
    with pytest.raises(
        ValueError,
        match="has no effect: this checkpoint has RemeDi's own policy stream; leave ups out",
    ):
        make(pretrained=bi_tower, ups=head)


def test_a_head_of_another_backbone_is_refused(make, head, tiny_checkpoint, tmp_path, make_model):
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    save_model(make_model(seed=1, **asdict(load_model(folder, device="cpu").config)), folder)
    with pytest.raises(ValueError, match="this UPS head was trained on another backbone"):
        make(pretrained=folder, ups=head)


# ---- what an engine says of itself


def test_the_fingerprint_changes_with_the_heads_content_and_not_with_its_place(
    make, head, beside, tmp_path
):
    copied = Path(shutil.copytree(head, tmp_path / "copied"))
    first = make(ups=copied, **SMALL).fingerprint()
    assert first == make(ups=head, **SMALL).fingerprint() != make(**SMALL).fingerprint()
    write_head(copied, beside, seed=1)
    assert make(ups=copied, **SMALL).fingerprint() != first
    before = make(pretrained=beside, **SMALL).fingerprint()
    changed = Path(shutil.copytree(beside, tmp_path / "changed"))
    assert make(pretrained=changed, **SMALL).fingerprint() == before
    write_head(changed / "ups", beside, seed=1)
    assert make(pretrained=changed, **SMALL).fingerprint() != before


def test_info_says_which_policy_decides(make, head, bi_tower):
    expected = {"none": (None, "tps_prob"), "light": (LIGHT, "ups"), "own": (OWN, "ups")}
    engines = {
        "none": make(**SMALL),
        "light": make(ups=head, **SMALL),
        "own": make(pretrained=bi_tower, **SMALL),
    }
    for name, engine in engines.items():
        info = engine.info()
        assert (info["policy"], info["confidence_source"]) == expected[name]
        assert info["method"] == "llada_ups" and info["sampler"]["revise"] is True
        json.dumps(info)
    assert engines["light"].info()["method_options"] == {"ups": str(head)}
    assert engines["none"].info()["method_options"] == {"ups": None}


# ---- the harness classes

HARNESS_OPTIONS = [
    {},
    dict(confidence_source="tps_prob"),
    dict(threshold=0.03, revise_below=0.4),
    dict(temperature=0.8, confidence_source="ups_all"),
    dict(confidence_source="tps_prob", revise=False),
]


@pytest.mark.parametrize("options", HARNESS_OPTIONS, ids=str)
def test_lm_evals_class_gives_the_engines_answers(make, beside, head, tiny_checkpoint, options):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from llada_plugins.lmeval_models import LLaDAUPS

    expected = answers(make(pretrained=beside, **options, **SMALL))
    requests = [
        Instance("generate_until", {}, (prompt, {"until": []}), number)
        for number, prompt in enumerate(PROMPTS)
    ]
    asked = [
        Instance("generate_until", {}, (prompt, {"until": [], **options}), number)
        for number, prompt in enumerate(PROMPTS)
    ]
    model = LLaDAUPS(
        str(tiny_checkpoint), device="cpu", batch_size=3, ups=str(head), **options, **SMALL
    )
    assert model.generate_until(requests, disable_tqdm=True) == expected
    assert model.get_model_info()["policy"] == LIGHT
    # head beside the checkpoint, options from --gen_kwargs
    found = LLaDAUPS(str(beside), device="cpu", **SMALL)
    assert found.generate_until(asked, disable_tqdm=True) == expected


@pytest.mark.parametrize("options", HARNESS_OPTIONS, ids=str)
def test_opencompass_class_gives_the_engines_answers(make, beside, head, tiny_checkpoint, options):
    pytest.importorskip("opencompass")
    from llada_plugins.opencompass_models import LLaDAUPS

    expected = answers(make(pretrained=beside, **options, **SMALL))
    for model in (
        LLaDAUPS(str(tiny_checkpoint), ups=str(head), **options, **SMALL),
        LLaDAUPS(str(beside), **options, **SMALL),
    ):
        assert model.generate(PROMPTS, max_out_len=99) == expected


def test_both_harnesses_refuse_a_misspelt_option_and_name_ups(tiny_checkpoint):
    for module, harness in (("lmeval_models", "lm_eval"), ("opencompass_models", "opencompass")):
        pytest.importorskip(harness)
        cls = __import__(f"llada_plugins.{module}", fromlist=["LLaDAUPS"]).LLaDAUPS
        with pytest.raises(ValueError, match=r"unknown option 'upps' \(did you mean 'ups'\?\)"):
            cls(str(tiny_checkpoint), upps="x")


# ---- the configs, and both stock commands from the outside


def sampler_of(entry: dict) -> SamplerConfig:
    kept = ("type", "abbr", "path", "chat", "batch_size", "run_cfg")
    return SamplerConfig(**{name: value for name, value in entry.items() if name not in kept})


def test_the_comparison_varies_the_source_and_nothing_else() -> None:
    pytest.importorskip("opencompass")
    from mmengine.config import Config

    baseline, *entries = Config.fromfile(CONFIGS / "eval_llada_ups.py").models
    assert len({entry["abbr"] for entry in (baseline, *entries)}) == 4
    assert all(
        f"{name}={entry[name]}" in entry["abbr"]
        for entry in entries
        for name in ("gen_length", "steps", "confidence_source")
    )
    assert [sampler_of(entry) for entry in entries] == [
        SamplerConfig(gen_length=16, steps=8, revise=True, confidence_source=source)
        for source in ("ups", "tps_prob", "random")
    ]
    assert sampler_of(baseline) == SamplerConfig(gen_length=16, steps=8)


def test_remedis_entry_has_its_published_schedule() -> None:
    pytest.importorskip("opencompass")
    from mmengine.config import Config

    (entry,) = Config.fromfile(CONFIGS / "opencompass" / "models" / "remedi_instruct.py").models
    config = sampler_of(entry)
    assert (config.block, config.steps_per_block, config.gen_length) == (32, 32, 1024)
    assert config.grows
    assert config.revise
    assert config.source == "ups"
    assert entry["path"] == "maple-research-lab/RemeDi-Instruct"


@pytest.mark.slow
def test_stock_lm_eval_gives_the_engines_answers(tmp_path, beside) -> None:
    pytest.importorskip("lm_eval")
    printed = stock(
        tmp_path,
        "lm_eval",
        "--model",
        "llada_ups",
        "--tasks",
        "sudoku4",
        "--include_path",
        str(CONFIGS / "lmeval"),
        "--model_args",
        f"pretrained={beside},confidence_source=ups_all,steps=8",
        "--limit",
        "6",
        "--device",
        "cpu",
        "--output_path",
        str(tmp_path),
        "--log_samples",
    )
    assert "falls back" not in printed
    rows = [
        json.loads(line)
        for line in next(tmp_path.rglob("samples_sudoku4_*.jsonl")).read_text().splitlines()
    ]
    puzzles = [problem.puzzle for problem in sudoku.problems("test", 6)]
    engine = Engine(
        "llada_ups",
        pretrained=str(beside),
        device="cpu",
        steps=8,
        gen_length=16,
        confidence_source="ups_all",
    )
    until = Request("", engine.sampler, ("\n",))
    expected = dict(engine.generate([until._replace(prompt=puzzle) for puzzle in puzzles]))
    assert {row["arguments"]["gen_args_0"]["arg_0"]: row["resps"][0][0] for row in rows} == {
        puzzle: expected[number].text for number, puzzle in enumerate(puzzles)
    }
    config = json.loads(next(tmp_path.rglob("results_*.json")).read_text())["config"]
    assert (config["policy"], config["confidence_source"], config["sampler"]["revise"]) == (
        LIGHT,
        "ups_all",
        True,
    )


FIRST_TWELVE = """
from mmengine.config import read_base
with read_base():
    from .configs.eval_llada_ups import *
datasets[0]['reader_cfg']['test_range'] = '[:12]'
"""


@pytest.mark.slow
def test_the_stock_comparison_of_sources_gives_the_engines_answers(tmp_path) -> None:
    pytest.importorskip("opencompass")
    shutil.copytree(CONFIGS, tmp_path / "configs")
    (tmp_path / "small.py").write_text(FIRST_TWELVE)
    stock(tmp_path, "opencompass.cli.main", "small.py", "--debug")
    (row,) = csv.DictReader(next(tmp_path.rglob("summary_*.csv")).open())
    problems = sudoku.problems("test", 12)
    sources = {
        source: Engine("llada_ups", gen_length=16, steps=8, confidence_source=source)
        for source in ("ups", "tps_prob", "random")
    }
    names = {
        f"LLaDA-UPS-tiny-gen_length=16-steps=8-confidence_source={source}": engine
        for source, engine in sources.items()
    }
    names["LLaDA-tiny-gen_length=16-steps=8"] = Engine(gen_length=16, steps=8)
    for name, engine in names.items():
        found = json.loads(next(tmp_path.rglob(f"predictions/{name}/sudoku4.json")).read_text())
        expected = answers(engine, prompts=[problem.puzzle for problem in problems])
        assert [found[str(number)]["prediction"] for number in range(12)] == expected, name
        correct = sum(
            sudoku.is_valid(problem.puzzle, answer) for problem, answer in zip(problems, expected)
        )
        # two digits
        assert float(row[name]) == pytest.approx(100 * correct / 12, abs=0.5 * 10**-2)
