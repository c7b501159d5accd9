"""llada_ala: which router an Engine has, what it refuses, equal answers and likelihoods
from both harnesses, their stock commands.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from llada_plugins.engine.engine import Engine, Request
from llada_plugins.methods.router import Router, RouterConfig, save_router
from llada_plugins.models.fingerprint import backbone_fingerprint
from llada_plugins.models.loading import load_model
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.tasks import nim, sudoku
from tests.commands import stock
from tests.tolerance import likelihood_error

pytestmark = pytest.mark.floats

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
PROMPTS = ["one", "a longer prompt", "x", "two"]
SMALL = dict(gen_length=12, steps=6, mc_num=8)


def write_router(folder: Path, checkpoint: Path, mode: str = "replace", **fields) -> Path:
    """A fresh router for the checkpoint."""
    model = load_model(checkpoint, device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_router(
            Router(RouterConfig(d_model=model.config.d_model, mode=mode, **fields)),
            folder,
            backbone_fingerprint(model),
        )
    return folder


@pytest.fixture(scope="module")
def router(tiny_checkpoint, tmp_path_factory) -> Path:
    """A router that is not beside its checkpoint; for reading only."""
    return write_router(tmp_path_factory.mktemp("router") / "somewhere", tiny_checkpoint)


@pytest.fixture(scope="module")
def beside(tiny_checkpoint, tmp_path_factory) -> Path:
    """A checkpoint with a router in its folder `router`; for reading only."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("beside") / "model"))
    write_router(folder / "router", folder)
    return folder


@pytest.fixture
def make(beside):
    """A function from options to an engine, by default llada_ala on the checkpoint with
    a router beside it.
    """

    def engine(method: str = "llada_ala", *, pretrained: Path = beside, **options) -> Engine:
        return Engine(method, pretrained=str(pretrained), device="cpu", **{**SMALL, **options})

    return engine


def answers(engine: Engine, prompts: list[str] = PROMPTS, until: tuple[str, ...] = ()) -> list[str]:
    found = dict(engine.generate([Request(prompt, engine.sampler, until) for prompt in prompts]))
    return [found[number].text for number in range(len(prompts))]


# ---- the engine


def test_a_router_beside_the_checkpoint_is_found_and_equals_the_same_router_given_by_name(
    make, router, tiny_checkpoint
):
    found, given = make(), make(pretrained=tiny_checkpoint, router=str(router))
    assert answers(found) == answers(given) != answers(make("llada"))
    assert found.sampler == make("llada").sampler and found.prepared.policy is None


def test_a_router_as_initialised_for_training_gives_the_baselines_answers_and_likelihoods(
    make, tiny_checkpoint, tmp_path
):
    untrained = make(router=str(write_router(tmp_path / "router", tiny_checkpoint, "residual")))
    baseline = make("llada")
    pairs = [(untrained.encode(prompt), untrained.encode("answer")) for prompt in PROMPTS]
    assert answers(untrained) == answers(baseline)
    assert dict(untrained.log_likelihood(pairs)) == dict(baseline.log_likelihood(pairs))


@pytest.mark.parametrize(
    "options, message",
    [
        (
            dict(router="no/such/folder"),
            "llada_ala needs a router: no/such/folder is not a folder; pass router=FOLDER, made "
            "by python -m",
        ),
        (dict(pretrained="tiny_checkpoint"), "llada_ala needs a router: .*router is not a folder"),
        (dict(method="llada", router="x"), "unknown option 'router'"),
        (dict(routr="x"), r"unknown option 'routr' \(did you mean 'router'\?\)"),
        (
            dict(confidence_source="ups", revise=True),
            "confidence_source='ups' needs an unmasking-policy stream",
        ),
    ],
    ids=str,
)
def test_what_a_routed_model_lacks_is_told_in_one_line(make, tiny_checkpoint, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        make(
            **{
                name: tiny_checkpoint if value == "tiny_checkpoint" else value
                for name, value in options.items()
            }
        )
    assert "\n" not in str(caught.value)


def test_the_fingerprint_and_info_say_which_router(make, router, tmp_path):
    copied = Path(shutil.copytree(router, tmp_path / "copied"))
    first = make(router=str(copied)).fingerprint()
    assert first == make(router=str(router)).fingerprint() != make("llada").fingerprint()
    write_router(copied, make().folder, "residual")
    assert make(router=str(copied)).fingerprint() != first
    info = make(router=str(router)).info()
    assert (info["method"], info["method_options"], info["confidence_source"]) == (
        "llada_ala",
        {"router": str(router)},
        "tps_prob",
    )


# ---- the harness classes

HARNESS_OPTIONS = [
    {},
    dict(temperature=0.8, block_length=4),
    dict(cfg_scale=1.0, threshold=0.05),
    dict(remask_ratio=0.5, confidence_source="margin"),
]


@pytest.mark.parametrize("options", HARNESS_OPTIONS, ids=str)
def test_lm_evals_class_gives_the_engines_answers(make, router, beside, tiny_checkpoint, options):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from llada_plugins.lmeval_models import LLaDAALA

    expected = answers(make(**options))
    asked = [
        Instance("generate_until", {}, (prompt, {"until": []}), number)
        for number, prompt in enumerate(PROMPTS)
    ]
    for model in (
        LLaDAALA(str(beside), device="cpu", **SMALL, **options),
        LLaDAALA(str(tiny_checkpoint), router=str(router), device="cpu", **SMALL, **options),
    ):
        assert model.generate_until(asked, disable_tqdm=True) == expected


@pytest.mark.parametrize("options", HARNESS_OPTIONS, ids=str)
def test_opencompass_class_gives_the_engines_answers(
    make, router, beside, tiny_checkpoint, options
):
    pytest.importorskip("opencompass")
    from llada_plugins.opencompass_models import LLaDAALA

    expected = answers(make(**options))
    for model in (
        LLaDAALA(str(beside), **SMALL, **options),
        LLaDAALA(str(tiny_checkpoint), router=str(router), **SMALL, **options),
    ):
        assert model.generate(PROMPTS, max_out_len=99) == expected


def test_both_harnesses_likelihoods_are_those_of_the_routed_denoiser(make, beside):
    pytest.importorskip("lm_eval")
    pytest.importorskip("opencompass")
    from lm_eval.api.instance import Instance

    from llada_plugins import lmeval_models, opencompass_models

    engine, pair = make(), ("the cat", " sat")
    tokens = engine.encode_pair(*pair)
    ((_, expected),) = engine.log_likelihood([tokens])
    ((_, baseline),) = make("llada").log_likelihood([tokens])
    bound = likelihood_error(engine.model, len(tokens[1]))  # seeds are no larger than embeddings
    assert abs(expected.value - baseline.value) > 10 * bound
    asked = [Instance("loglikelihood", {}, pair, 0)]
    ((value, _),) = lmeval_models.LLaDAALA(str(beside), device="cpu", **SMALL).loglikelihood(
        asked, disable_tqdm=True
    )
    assert value == pytest.approx(expected.value, abs=bound)
    (value,) = opencompass_models.LLaDAALA(str(beside), **SMALL).get_loglikelihood(
        ["the cat sat"], [" sat"]
    )
    assert value == pytest.approx(expected.value, abs=bound)


def test_lm_eval_knows_the_name():
    pytest.importorskip("lm_eval")
    import lm_eval.models  # noqa: F401
    from lm_eval.api.registry import get_model

    from llada_plugins.lmeval_models import LLaDAALA

    assert get_model("llada_ala") is LLaDAALA


# ---- the shipped routers, the config, and both stock commands from the outside


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sudoku4", "nim"])
def test_a_router_is_shipped_that_changes_answers_of_its_model(name):
    # Nim's changes few of them
    problems = [
        problem[0] for problem in {"sudoku4": sudoku, "nim": nim}[name].problems("test", 300)
    ]
    options = dict(
        pretrained=name,
        device="cpu",
        gen_length=16 if name == "sudoku4" else nim.ANSWER_LENGTH,
        steps=4,
        batch_size=100,
    )
    engine = Engine("llada_ala", **options)
    assert (engine.folder / "router").is_dir()
    assert answers(engine, problems) != answers(Engine("llada", **options), problems)


def entries() -> list[dict]:
    pytest.importorskip("opencompass")
    from mmengine.config import Config

    return Config.fromfile(CONFIGS / "eval_llada_ala.py")


def test_the_config_pairs_each_routed_model_with_its_baseline_and_each_model_with_its_task():
    config = entries()
    kept = ("type", "abbr", "path", "batch_size", "run_cfg")
    pairs = {}
    for entry in config.models:
        sampler = {name: value for name, value in entry.items() if name not in kept}
        SamplerConfig(**sampler)
        assert all(f"{name}={value}" in entry["abbr"] for name, value in sampler.items())
        pairs.setdefault((entry["path"], *sampler.items()), []).append(entry["type"].method)
    assert sorted(map(sorted, pairs.values())) == [["llada", "llada_ala"]] * 3
    assert len({entry["abbr"] for entry in config.models}) == 6
    combined = [
        ({model["path"] for model in row["models"]}, {data["abbr"] for data in row["datasets"]})
        for row in config.model_dataset_combinations
    ]
    assert combined == [({None}, {"sudoku4"}), ({"nim"}, {"nim", "nim_ood_heaps", "nim_ood_sizes"})]


FIRST_SIX = """
from mmengine.config import read_base
with read_base():
    from .configs.eval_llada_ala import *
for row in [dict(datasets=datasets), *model_dataset_combinations]:
    for dataset in row['datasets']:
        dataset['reader_cfg']['test_range'] = '[:6]'
"""


@pytest.mark.slow
@pytest.mark.parametrize("model, task", [("sudoku4", "sudoku4"), ("nim", "nim")])
def test_stock_lm_eval_gives_the_engines_answers(tmp_path, model, task) -> None:
    pytest.importorskip("lm_eval")
    stock(
        tmp_path,
        "lm_eval",
        "--model",
        "llada_ala",
        "--model_args",
        f"pretrained={model},steps=4",
        "--tasks",
        task,
        "--include_path",
        str(CONFIGS / "lmeval"),
        "--limit",
        "6",
        "--device",
        "cpu",
        "--output_path",
        str(tmp_path),
        "--log_samples",
    )
    rows = [
        json.loads(line)
        for line in next(tmp_path.rglob(f"samples_{task}_*.jsonl")).read_text().splitlines()
    ]
    found = {row["arguments"]["gen_args_0"]["arg_0"]: row["resps"][0][0] for row in rows}
    prompts = [problem[0] for problem in {"sudoku4": sudoku, "nim": nim}[task].problems("test", 6)]
    engine = Engine(
        "llada_ala",
        pretrained=model,
        device="cpu",
        steps=4,
        gen_length=16 if task == "sudoku4" else nim.ANSWER_LENGTH,
    )
    assert found == dict(zip(prompts, answers(engine, prompts, ("\n",))))
    assert (
        json.loads(next(tmp_path.rglob("results_*.json")).read_text())["config"]["method"]
        == "llada_ala"
    )


@pytest.mark.slow
def test_the_stock_comparison_gives_the_engines_answers(tmp_path) -> None:
    pytest.importorskip("opencompass")
    shutil.copytree(CONFIGS, tmp_path / "configs")
    (tmp_path / "small.py").write_text(FIRST_SIX)
    stock(tmp_path, "opencompass.cli.main", "small.py", "--debug")
    summary = {
        row["dataset"]: row for row in csv.DictReader(next(tmp_path.rglob("summary_*.csv")).open())
    }
    for name, method, options, prompts in (
        (
            "LLaDA-ALA-tiny-gen_length=16-steps=8",
            "llada_ala",
            dict(gen_length=16, steps=8),
            sudoku.problems("test", 6),
        ),
        (
            "LLaDA-tiny-gen_length=16-steps=8",
            "llada",
            dict(gen_length=16, steps=8),
            sudoku.problems("test", 6),
        ),
        (
            "LLaDA-ALA-nim-gen_length=8-steps=8",
            "llada_ala",
            dict(pretrained="nim", gen_length=8, steps=8),
            nim.problems("test", 6),
        ),
    ):
        task, is_right = ("nim", nim.is_winning) if "nim" in name else ("sudoku4", sudoku.is_valid)
        rows = json.loads(next(tmp_path.rglob(f"predictions/{name}/{task}.json")).read_text())
        prompts = [problem[0] for problem in prompts]
        expected = answers(Engine(method, device="cpu", **options), prompts)
        assert [rows[str(number)]["prediction"] for number in range(6)] == expected
        # two digits
        assert float(summary[task][name]) == pytest.approx(
            100 * sum(map(is_right, prompts, expected)) / 6, abs=0.5 * 10**-2
        )
