"""The benchmark's two sides do the same work: the published loop decodes our tokens,
and the command reports it. No times are asserted.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import (
    accuracy,
    generation,
    generation_peers,
    memory,
    peers,
    random_models,
    reference,
    roofline,
    steps,
)
from llada_plugins import SamplerConfig
from llada_plugins.diffusion.denoiser import PADDING
from llada_plugins.models.llada import LLaDA

pytestmark = pytest.mark.floats

SMALL = [
    "--shape",
    "tiny",
    "--prompt_length",
    "8",
    "--gen_length",
    "16",
    "--block_length",
    "8",
    "--num_masked",
    "4",
    "--steps_measured",
    "2",
    "--check_length",
    "8",
    "--memory_length",
    "0",
    "--accuracy_puzzles",
    "0",
]
TINY = dict(
    shape="tiny", prompt_length=16, gen_length=24, block_length=8, num_masked=3, memory_length=0
)


@pytest.fixture(scope="module")
def model() -> LLaDA:
    return random_models.random_model(
        random_models.model_config("tiny", 64), torch.device("cpu"), seed=0
    )


def prompts_for(model: LLaDA) -> torch.Tensor:
    return torch.cat([random_models.random_tokens(model, 7, seed) for seed in range(3)])


@pytest.mark.parametrize(
    "options",
    [
        dict(gen_length=16),
        dict(gen_length=16, steps=4),
        dict(gen_length=16, block_length=4),
        dict(gen_length=16, block_length=8, steps=6),  # 8 tokens in 3 steps: 3, 3, 2
    ],
    ids=str,
)
def test_published_loop_decodes_our_tokens_in_as_many_forwards(model, options):
    assert generation.same_tokens(model, prompts_for(model), SamplerConfig(**options))


def test_check_fails_where_the_two_loops_differ(model):
    prompts, mask = prompts_for(model), model.special_tokens.mask
    other = random_models.random_model(model.config, model.device, seed=0)
    state = other.hidden_states(torch.cat([prompts, torch.full((3, 16), mask)], 1))[:, 7:].mean(
        (0, 1)
    )
    # a head that proposes the mask, which only ours rules out
    other.model["transformer"]["ff_out"].weight[mask] = 100 * state
    assert not generation.same_tokens(other, prompts, SamplerConfig(gen_length=16))


def test_published_loop_leaves_the_prompt_and_no_mask_when_it_samples(model):
    prompts = prompts_for(model)
    config = SamplerConfig(gen_length=16, block_length=8, temperature=0.7)
    decoded = reference.generate(
        model, prompts, config, model.special_tokens.mask, torch.Generator().manual_seed(0)
    )
    assert torch.equal(decoded.tokens[:, :7], prompts)
    assert not (decoded.tokens == model.special_tokens.mask).any()
    assert decoded.num_forwards == 16


def test_published_noise_samples_the_tempered_softmax():
    draws, temperature = 20_000, 0.7
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    sample = reference.gumbel(
        logits.expand(draws, 4), temperature, torch.Generator().manual_seed(0)
    ).argmax(-1)
    expected = (logits / temperature).softmax(-1)
    standard_error = (expected * (1 - expected) / draws).sqrt()
    # 4 sigma; the seed is fixed
    assert ((sample.bincount(minlength=4) / draws - expected).abs() < 4 * standard_error).all()


def test_measured_step_finds_text_then_the_active_block_then_masks(model):
    options = generation.Options(**{**TINY, "prompt_length": 8})
    tokens, window = generation.middle_of_generation(model, options)
    masked = tokens[0] == model.special_tokens.mask
    assert window == slice(16, 24)
    assert (masked[:16].sum(), masked[window].sum(), masked[24:].sum()) == (0, 3, 8)


@pytest.mark.parametrize("form", generation.FORMS)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_every_form_of_the_measured_step_unmasks_the_active_block_alone(model, form, temperature):
    options = generation.Options(**{**TINY, "prompt_length": 8})
    tokens, window = generation.middle_of_generation(model, options)
    stepped = tokens.clone()
    generation.FORMS[form](model, stepped, window, options.sampler(temperature), options.num_masked)
    changed = stepped != tokens
    assert changed[:, window].sum() == changed.sum() == 3


@pytest.mark.parametrize("form", steps.BATCHES)
def test_steps_of_a_batch_leave_the_tokens_they_were_given(model, form):
    options = generation.Options(**TINY)
    tokens, window = generation.middle_of_generation(model, options)
    stepped = tokens.clone()
    steps.BATCHES[form](model, stepped, window, options.sampler(0.0), options.num_masked)
    assert torch.equal(stepped, tokens)


def test_rows_of_a_batch_unmask_what_they_unmask_alone(model):
    options = generation.Options(**TINY)
    (tokens, window), seen = generation.middle_of_generation(model, options), {}

    def kept(name: str):
        def step(model, tokens, window, config, num_masked):
            steps.dual_later(model, tokens, window, config, num_masked)
            seen.setdefault(name, []).extend(row[row != PADDING].tolist() for row in tokens)

        return step

    for name, batch in (("together", steps.together), ("alone", steps.alone)):
        batch(kept(name), model, tokens, window, options.sampler(0.0), options.num_masked)
    assert seen["together"] == seen["alone"]
    assert [len(row) for row in seen["alone"]] == list(range(40, 32, -1))
    assert {row.count(model.special_tokens.mask) for row in seen["alone"]} == {8}


def test_a_cached_block_costs_one_first_step_and_the_rest_later_ones():
    measured = {
        "reference": 9.0,
        "exact": 3.0,
        "first": 4.0,
        "dual_later": 1.0,
        "prefix_later": 2.0,
        "first_greedy": 3.0,
        "dual_later_greedy": 0.5,
        "prefix_later_greedy": 1.0,
        "first_batch8": 16.0,
        "dual_later_batch8": 4.0,
        "first_int8": 3.5,
        "dual_later_int8": 0.5,
        "first_low_precision": 2.5,
        "dual_later_low_precision": 0.25,
    }
    mean = generation.composed(measured, 4)
    assert (mean["dual"], mean["prefix"], mean["dual_greedy"], mean["batch8"]) == (
        7 / 4,
        10 / 4,
        4.5 / 4,
        28 / 32,
    )
    assert (mean["dual_refresh2"], mean["dual_refresh2_greedy"]) == (2.5, 1.75)
    assert (mean["low_precision"], mean["dual_low_precision"], mean["int8"], mean["dual_int8"]) == (
        2.5,
        3.25 / 4,
        3.5,
        5 / 4,
    )
    assert mean["exact"] == 3.0 and "first_batch8" not in mean and "batch8_greedy" not in mean


def test_8b_shape_has_the_parameters_of_llada_8b():
    with torch.device("meta"):
        model = LLaDA(random_models.model_config("8b", 4096))
    # bytes of the bfloat16 checkpoint
    assert sum(parameter.numel() for parameter in model.parameters()) == 16_031_162_368 // 2


@pytest.mark.slow
def test_command_writes_its_result_as_json(tmp_path, capsys):
    measured_all = [
        "--memory_length",
        "256",
        "--accuracy_puzzles",
        "2",
        "--plot",
        str(tmp_path / "plot.png"),
    ]
    assert generation.main([*SMALL, *measured_all, "--json", str(tmp_path / "result.json")]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["same_tokens"] is True
    both = {
        *steps.FORMS,
        "prefix",
        "dual",
        "dual_refresh2",
        "low_precision",
        "dual_low_precision",
        "int8",
        "dual_int8",
    } - {"reference"}
    ours = {f"{form}{suffix}" for form in both for suffix in ("", "_greedy")} | {
        f"{name}{precision}"
        for name in ("batch8", "batch8_alone")
        for precision in ("", "_low_precision")
    }
    assert (
        ours | {"reference", "reference_greedy"}
        >= result["floor"]["seconds"].keys()
        >= {"exact", "prefix", "dual", "batch8"}
    )
    assert all(0 < share < 1 for share in result["floor"]["overhead"].values())
    assert list(result["memory"]["peaks"]) == ["16", "32", "64", "128", "256"]
    assert list(result["accuracy"]) == ["sudoku4", "nim"]
    for rows in result["accuracy"].values():
        assert list(rows) == list(accuracy.WAYS)
        assert all(
            row["times_faster"] > 0 and row["times_faster_greedy"] > 0 for row in rows.values()
        )
        # one token a forward: the speed of an answer is that of its steps
        for suffix in ("", "_greedy"):
            for name in (
                "exact",
                "prefix",
                "dual",
                "dual_refresh2",
                "low_precision",
                "dual_low_precision",
                "int8",
                "dual_int8",
            ):
                assert rows[name][f"times_faster{suffix}"] == pytest.approx(
                    result["ratios"][name + suffix]
                )
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert set(result["ratios"]) == ours
    assert set(result["seconds"]) == ours | {"reference", "reference_greedy"}
    assert set(result["times_exact"]) == {name for name in ours if name.startswith(("ups", "ala"))}
    assert result["peers"] == {}
    assert result["router_share"] > 0
    assert set(result["head_share"]) == {"128", "512"}
    assert all(len(taken) == 2 for taken in result["every_step"].values())
    assert result["shape"]["name"] == "tiny"
    printed = capsys.readouterr().out
    assert "same tokens at temperature 0: yes" in printed
    assert all(
        text in printed
        for text in [
            *result["seconds"],
            *result["accuracy"],
            *accuracy.WAYS,
            "floor ms",
            "a further column",
        ]
    )


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--num_masked", "9"], "num_masked must be from 1 to block_length (8), got 9"),
        (["--temperature", "0"], "temperature must be above 0"),
        (["--check_length", "7"], "check_length must be even"),
        (["--block_length", "6"], "gen_length (16) must be a multiple of block_length (6)"),
        (["--steps_measured", "0"], "steps_measured must be at least 1"),
        (["--device", "gpu"], "device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        (["--json", "no/such/folder/result.json"], "its folder does not exist"),
        (["--plot", "no/such/folder/plot.png"], "its folder does not exist"),
        (["--plot", "plot.xyz"], "plot must end in .png, .pdf, .svg, got 'plot.xyz'"),
        (
            ["--memory_length", "100"],
            "memory_length must be 0 or a multiple of 32 blocks (256), got 100",
        ),
        (
            ["--accuracy_puzzles", "-1"],
            "accuracy_puzzles must be from 0 to 1036, the Nim positions that there are, got -1",
        ),
        (["--accuracy_puzzles", "1037"], "accuracy_puzzles must be from 0 to 1036"),
        (
            ["--peer", "no/such/checkout"],
            "is no checkout of LLaDA, Fast-dLLM or dllm: give a folder that has",
        ),
    ],
)
def test_bad_options_are_refused_before_any_work(flags, message):
    with pytest.raises(SystemExit) as refused:
        generation.main([*SMALL, *flags])
    assert message in str(refused.value)


PLAIN = """
from benchmarks import reference
from llada_plugins import SamplerConfig

def generate(model, prompt, mask_id, **options):
    config = SamplerConfig(**options)
    return reference.generate(lambda tokens: model(tokens).logits, prompt, config, mask_id).tokens
"""
CACHED = """
import torch
from model.modeling_llada import LLaDAModelLM
from llada_plugins import SamplerConfig, generate as decode

def loop(cache):
    def generate(model, prompt, mask_id, **options):
        config = SamplerConfig(**options, cache=cache)
        sample, = decode(model, prompt.tolist(), config)
        return torch.cat([prompt, torch.tensor([sample.answer])], 1), sample.num_forwards
    return generate

generate = loop("none")
generate_with_prefix_cache = loop("prefix")
generate_with_dual_cache = loop("dual")
"""
MODELLING = """
from llada_plugins.models.llada import LLaDA

class LLaDAModelLM(LLaDA):
    pass
"""
CONFIGURATION = """
from llada_plugins.models.llada_config import LLaDAConfig as Ours

class LLaDAConfig(Ours):
    def __init__(self, init_device, **fields):
        vars(self).update(vars(Ours.from_dict(fields)))
    __setattr__ = object.__setattr__
"""


@pytest.fixture
def checkouts(tmp_path) -> list[Path]:
    """Folders with the files and interfaces of LLaDA and Fast-dLLM, and loops of our own."""
    files = {
        "LLaDA/generate.py": PLAIN,
        "Fast/llada/generate.py": CACHED,
        "Fast/llada/model/__init__.py": "",
        "Fast/llada/model/modeling_llada.py": MODELLING,
        "Fast/llada/model/configuration_llada.py": CONFIGURATION,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return [tmp_path / "LLaDA", tmp_path / "Fast"]


def test_peers_decode_our_tokens_on_our_weights_and_leave_no_modules(model, checkouts):
    before = set(sys.modules)
    loaded = [peers.load_peer(folder, model) for folder in checkouts]
    assert not {
        name for name in set(sys.modules) - before if name.split(".")[0] in ("generate", "model")
    }
    found = peers.compare(loaded, model, random_models.random_tokens(model, 8, 0), 8, 0.7, 2, "cpu")
    assert set(found) == {
        "LLaDA exact",
        "LLaDA exact_greedy",
        "Fast-dLLM exact",
        "Fast-dLLM exact_greedy",
        "Fast-dLLM prefix_greedy",
        "Fast-dLLM dual_greedy",
    }
    assert {name: each["same_tokens"] for name, each in found.items()} == {
        name: name.endswith("_greedy") or None for name in found
    }
    assert all(
        each["ratio"] > 0 and len(each["ours"]) == len(each["theirs"]) == 2
        for each in found.values()
    )


def test_weights_of_a_peers_own_model_are_ours_and_not_copies(model, checkouts):
    with peers.importing(checkouts[1] / "llada"):
        from model.configuration_llada import LLaDAConfig
        from model.modeling_llada import LLaDAModelLM

        theirs = peers.with_our_weights(LLaDAModelLM, LLaDAConfig, model)
    ours = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    assert {name: parameter.data_ptr() for name, parameter in theirs.named_parameters()} == ours


@pytest.mark.parametrize("mode", ["on", "off"])
def test_our_layers_are_compiled_beside_peers_and_not_after(model, checkouts, monkeypatch, mode):
    modes: list[str] = []
    monkeypatch.setattr(LLaDA, "compile_layers", lambda _, mode: modes.append(mode))

    def runs(*_: object) -> dict:
        modes.append("peers")
        return {}

    monkeypatch.setattr(generation_peers, "peer_runs", runs)
    options = generation.Options(peer=[str(checkouts[0])], compile=mode)
    generation_peers.peer_results(model, options, "cpu", {})
    assert modes == [mode, "peers", "off"]


@pytest.mark.slow
def test_command_reports_peers_and_fails_where_their_tokens_differ(checkouts, tmp_path, capsys):
    flags = [*SMALL, "--steps_measured", "1", "--peer_repetitions", "1", "--peer"]
    assert (
        generation.main([*flags, *map(str, checkouts), "--json", str(tmp_path / "result.json")])
        == 0
    )
    assert json.loads((tmp_path / "result.json").read_text())["peers"].keys() >= {
        "LLaDA exact",
        "Fast-dLLM dual_greedy",
    }
    (checkouts[0] / "generate.py").write_text(PLAIN.replace(".tokens", ".tokens.flip(1)"))
    assert generation.main([*flags, str(checkouts[0])]) == 1
    assert "NO" in capsys.readouterr().out


def test_a_peer_that_fails_is_named_and_the_others_are_measured(model, checkouts):
    (checkouts[0] / "generate.py").write_text(
        "def generate(*_, **__): raise AttributeError('no such thing')"
    )
    loaded = [peers.load_peer(folder, model) for folder in checkouts]
    found = peers.compare(loaded, model, random_models.random_tokens(model, 8, 0), 8, 0.7, 1, "cpu")
    assert found["LLaDA exact"] == {"error": "AttributeError: no such thing"}
    assert "ratio" in found["Fast-dLLM dual_greedy"]
    assert "failed: AttributeError: no such thing" in peers.table(found)


def test_a_peer_that_cannot_be_imported_is_refused_in_one_line(checkouts):
    (checkouts[0] / "generate.py").write_text("import no_such_package")
    with pytest.raises(
        SystemExit, match="cannot be loaded: ModuleNotFoundError: No module named 'no_such_package'"
    ):
        generation.main([*SMALL, "--peer", str(checkouts[0])])


@pytest.mark.parametrize("form", ["reference", "exact", "first", "prefix_later", "dual_later"])
def test_counted_operations_of_a_step_are_those_that_torch_counts(model, form):
    options = generation.Options(**TINY)
    tokens, window = generation.middle_of_generation(model, options)
    # fills the cache
    generation.FORMS[form](model, tokens.clone(), window, options.sampler(0.0), 3)
    # the fused CPU kernel is not counted
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):
        generation.FORMS[form](model, tokens.clone(), window, options.sampler(0.0), 3)
    work = roofline.row_work(form, tokens.shape[1], window.start, 8, 3)
    assert counted.get_total_flops() == roofline.flops(model.config, work)


@pytest.mark.parametrize("shape", random_models.SHAPES)
def test_a_step_reads_every_weight_but_the_embedding_and_the_norms(shape):
    with torch.device("meta"):
        model = LLaDA(random_models.model_config(shape, 64))
    read = sum(
        each.numel()
        for name, each in model.named_parameters()
        if each.dim() > 1 and "wte" not in name
    )
    columns = model.config.num_experts  # enough for every expert to be taken
    assert roofline.num_bytes(model.config, roofline.Work(columns, 0, 0), 2) == 2 * read


def test_floor_is_the_larger_of_computing_and_reading_and_a_batch_reads_weights_once():
    config, place = random_models.model_config("8b", 4096), roofline.Place(512, 384, 32, 16)
    quick, slow = roofline.Ceiling(1e30, 1e12), roofline.Ceiling(1e12, 1e30)
    names = ["dual_later", "dual_later_batch8", "dual_later_alone", "exact", "ups"]
    cuts = range(0, 128, 16)
    reading = roofline.step_floors(config, names, place, cuts, 2, {2: quick})
    computing = roofline.step_floors(config, names, place, cuts, 2, {2: slow})
    assert set(reading) == set(names) - {"ups"}
    # 8 B parameters less the embedding, 2 bytes each
    assert reading["dual_later"] == pytest.approx(15.0e9 / 1e12, rel=0.02)
    assert (
        reading["dual_later_batch8"] < 1.2 * reading["dual_later"] < reading["dual_later_alone"] / 6
    )
    assert computing["dual_later_batch8"] == pytest.approx(computing["dual_later_alone"])
    assert computing["exact"] > 10 * computing["dual_later"]


def test_peak_memory_is_what_lives_at_one_time():
    def work() -> None:
        first = torch.empty(1000)
        second = torch.empty(500)
        del first
        torch.empty(200) + second[:200]

    assert memory.peak_bytes(work, torch.device("cpu")) == 6000


def test_a_column_more_of_the_canvas_costs_no_logits(model):
    options = generation.Options(**{**TINY, "memory_length": 512})
    config = dataclasses.replace(
        model.config, vocab_size=5000, mask_token_id=4999, max_sequence_length=512
    )
    wide = random_models.random_model(config, model.device, seed=0)
    found = generation.memory_growth(wide, options)
    assert list(found.peaks) == [32, 64, 128, 256, 512]
    assert found.per_column < 5000  # of 20,000 bytes that a column's logits have
    # logits of three masked positions; of all they would be 32
    assert 3 * 5000 * 4 < found.peaks[32] < 8 * 3 * 5000 * 4


@pytest.mark.parametrize("task", accuracy.TASKS)
def test_every_way_of_decoding_is_judged_beside_exact_decoding(task):
    found, length = accuracy.measure(2)[task], accuracy.TASKS[task].answer_length
    assert length == 2 * accuracy.BLOCK_LENGTHS[task]
    assert found["exact"].same_answers == 1 and found["exact"].mean_forwards == length
    assert (
        2 <= found["threshold_0.95"].mean_forwards < length == found["dual_refresh2"].mean_forwards
    )
    assert found["threshold_0.95"].same_answers > 0
    assert all(0 <= each.accuracy <= 1 for each in found.values())


def test_an_answers_speed_follows_from_its_forwards_and_from_how_many_of_them_are_first_steps():
    medians = {
        f"{name}{suffix}": seconds
        for suffix in ("", "_greedy")
        for name, seconds in {
            "reference": 12.0,
            "exact": 3.0,
            "first": 4.0,
            "prefix_later": 2.0,
            "dual_later": 1.0,
            "first_low_precision": 1.5,
            "dual_later_low_precision": 0.5,
            "first_int8": 4.0,
            "dual_later_int8": 1.0,
        }.items()
    }
    medians["reference_greedy"] = 6.0
    # blocks of 8 tokens
    found = generation.judged(medians, generation.Options(**TINY, accuracy_puzzles=3))
    for task, rows in found.items():
        for name, row in rows.items():
            assert row["times_faster"] == pytest.approx(2 * row["times_faster_greedy"])
            share = row["mean_forwards"] / accuracy.TASKS[task].answer_length
            if "cache" not in accuracy.WAYS[name].options and name.startswith(
                ("exact", "threshold", "factor", "error")
            ):
                assert row["times_faster"] == pytest.approx(12 / 3 / share)
            if name.startswith("dual_threshold"):
                assert row["mean_forwards"] < rows["dual"]["mean_forwards"]
                assert row["times_faster"] == pytest.approx(8 * 12 / (4 + (8 * share - 1) * 1))
        assert rows["dual"]["times_faster"] == pytest.approx(8 * 12 / (4 + 7 * 1))
    printed = accuracy.table(found, 3)
    assert all(
        f"{row['times_faster_greedy']:.2f}" in printed
        for rows in found.values()
        for row in rows.values()
    )


def test_eight_bits_are_those_of_the_blocks_alone_and_the_model_stays_as_it_is(model):
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    quantised = steps.int8(model)
    shared = {
        name
        for name, parameter in quantised.named_parameters()
        if parameter.data_ptr() == dict(model.named_parameters())[name].data_ptr()
    }
    assert {name for name in before if name not in shared} == {
        name
        for name, parameter in model.named_parameters()
        if ".blocks." in name and parameter.dim() == 2
    }
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    tokens = random_models.random_tokens(model, 8, 0)
    ours, theirs = model(tokens), quantised(tokens)
    assert 0 < (ours - theirs).abs().max() < 0.05 * ours.abs().max()


@pytest.mark.slow
def test_tokens_that_differ_in_bfloat16_alone_are_told_and_are_no_failure(checkouts, capsys):
    flags = [*SMALL, "--steps_measured", "1", "--peer_repetitions", "1", "--dtype", "bfloat16"]
    half = "torch.bfloat16 else 0)"
    (checkouts[0] / "generate.py").write_text(
        "import torch\n"
        + PLAIN.replace(".tokens", f".tokens.roll(1 if model.model.dtype == {half}")
    )
    assert generation.main([*flags, "--peer", str(checkouts[0])]) == 0
    assert "in float32: theirs ranks in less" in capsys.readouterr().out
    (checkouts[0] / "generate.py").write_text(PLAIN.replace(".tokens", ".tokens.roll(1)"))
    assert generation.main([*flags, "--peer", str(checkouts[0])]) == 1


def test_ceilings_are_measured_on_random_data(monkeypatch):
    seen = []
    monkeypatch.setattr(
        roofline.F, "linear", lambda x, weight: seen.append((x, weight)) or x @ weight.T
    )
    found = roofline.measured_ceiling(torch.device("cpu"), torch.float32, "wall", megabytes=1)
    assert found.flops > 0 and found.bandwidth > 0
    assert all(each.std() > 0.9 for pair in seen for each in pair)


def test_a_profile_counts_the_operators_of_a_step():
    x = torch.randn(64, 64)
    found = roofline.profiled(lambda: (x @ x).relu().sum(), torch.device("cpu"))
    # a product, a rectifier and a sum, each with operators inside
    assert found.num_calls >= 3 and 0 < found.product_share < 1 and found.busy_seconds > 0
    assert found.idle_share(2 * found.busy_seconds) == pytest.approx(0.5)
    assert found.idle_share(found.busy_seconds / 2) == 0


def test_a_profile_of_nothing_says_no_share():
    found = roofline.profiled(lambda: None, torch.device("cpu"))
    assert found.num_calls == 0
    assert math.isnan(found.idle_share(1.0)) and math.isnan(found.product_share)
