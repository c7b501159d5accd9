"""The benchmark's two sides do the same work: the published loop decodes our tokens, and the command reports it. No times are asserted."""
from __future__ import annotations

import json

import pytest
import torch

from benchmarks import generation, reference, steps
from llada_plugins import SamplerConfig
from llada_plugins.denoiser import PADDING
from llada_plugins.model import LLaDA

SMALL = ["--shape", "tiny", "--prompt_length", "8", "--gen_length", "16", "--block_length", "8", "--num_masked", "4", "--steps_measured",
         "2", "--check_length", "8"]


@pytest.fixture(scope="module")
def model() -> LLaDA:
    return generation.random_model(generation.model_config("tiny", 64), torch.device("cpu"), seed=0)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The command sets the number of threads; on tiny tensors and a busy machine two of them wait 20 times longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def prompts_for(model: LLaDA) -> torch.Tensor:
    return torch.cat([generation.random_tokens(model, 7, seed) for seed in range(3)])


@pytest.mark.parametrize("options", [
    dict(gen_length=16),
    dict(gen_length=16, steps=4),
    dict(gen_length=16, block_length=4),
    dict(gen_length=16, block_length=8, steps=6),        # 8 tokens in 3 steps: 3, 3, 2
], ids=str)
def test_published_loop_decodes_our_tokens_in_as_many_forwards(model, options):
    assert generation.same_tokens(model, prompts_for(model), SamplerConfig(**options))


def test_check_fails_where_the_two_loops_differ(model):
    prompts, mask = prompts_for(model), model.special_tokens.mask
    other = generation.random_model(model.config, model.device, seed=0)
    state = other.hidden_states(torch.cat([prompts, torch.full((3, 16), mask)], 1))[:, 7:].mean((0, 1))
    other.model["transformer"]["ff_out"].weight[mask] = 100 * state        # a head that proposes the mask, which only ours rules out
    assert not generation.same_tokens(other, prompts, SamplerConfig(gen_length=16))


def test_published_loop_leaves_the_prompt_and_no_mask_when_it_samples(model):
    prompts = prompts_for(model)
    config = SamplerConfig(gen_length=16, block_length=8, temperature=0.7)
    decoded = reference.generate(model, prompts, config, model.special_tokens.mask, torch.Generator().manual_seed(0))
    assert torch.equal(decoded.tokens[:, :7], prompts)
    assert not (decoded.tokens == model.special_tokens.mask).any()
    assert decoded.num_forwards == 16


def test_published_noise_samples_the_tempered_softmax():
    draws, temperature = 20_000, 0.7
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    sample = reference.gumbel(logits.expand(draws, 4), temperature, torch.Generator().manual_seed(0)).argmax(-1)
    expected = (logits / temperature).softmax(-1)
    standard_error = (expected * (1 - expected) / draws).sqrt()
    assert ((sample.bincount(minlength=4) / draws - expected).abs() < 4 * standard_error).all()        # 4 sigma; the seed is fixed


def test_measured_step_finds_text_then_the_active_block_then_masks(model):
    options = generation.Options(shape="tiny", prompt_length=8, gen_length=24, block_length=8, num_masked=3)
    tokens, window = generation.middle_of_generation(model, options)
    masked = tokens[0] == model.special_tokens.mask
    assert window == slice(16, 24)
    assert (masked[:16].sum(), masked[window].sum(), masked[24:].sum()) == (0, 3, 8)


@pytest.mark.parametrize("form", generation.FORMS)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_every_form_of_the_measured_step_unmasks_the_active_block_alone(model, form, temperature):
    options = generation.Options(shape="tiny", prompt_length=8, gen_length=24, block_length=8, num_masked=3)
    tokens, window = generation.middle_of_generation(model, options)
    stepped = tokens.clone()
    generation.FORMS[form](model, stepped, window, options.sampler(temperature), options.num_masked)
    changed = stepped != tokens
    assert changed[:, window].sum() == changed.sum() == 3


@pytest.mark.parametrize("form", steps.BATCHES)
def test_steps_of_a_batch_leave_the_tokens_they_were_given(model, form):
    options = generation.Options(shape="tiny", prompt_length=16, gen_length=24, block_length=8, num_masked=3)
    tokens, window = generation.middle_of_generation(model, options)
    stepped = tokens.clone()
    steps.BATCHES[form](model, stepped, window, options.sampler(0.0), options.num_masked)
    assert torch.equal(stepped, tokens)


def test_rows_of_a_batch_unmask_what_they_unmask_alone(model):
    options = generation.Options(shape="tiny", prompt_length=16, gen_length=24, block_length=8, num_masked=3)
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
    measured = {"reference": 9.0, "exact": 3.0, "first": 4.0, "dual_later": 1.0, "prefix_later": 2.0, "first_greedy": 3.0,
                "dual_later_greedy": 0.5, "prefix_later_greedy": 1.0, "first_batch8": 16.0, "dual_later_batch8": 4.0}
    mean = generation.composed(measured, 4)
    assert (mean["dual"], mean["prefix"], mean["dual_greedy"], mean["batch8"]) == (7 / 4, 10 / 4, 4.5 / 4, 28 / 32)
    assert mean["exact"] == 3.0 and "first_batch8" not in mean and "batch8_greedy" not in mean


def test_8b_shape_has_the_parameters_of_llada_8b():
    with torch.device("meta"):
        model = LLaDA(generation.model_config("8b", 4096))
    assert sum(parameter.numel() for parameter in model.parameters()) == 16_031_162_368 // 2        # bytes of the bfloat16 checkpoint


def test_command_writes_its_result_as_json(tmp_path, capsys):
    assert generation.main([*SMALL, "--json", str(tmp_path / "result.json")]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["same_tokens"] is True
    both = {*steps.FORMS, "prefix", "dual", "dual_low_precision"} - {"reference"}
    ours = {f"{form}{suffix}" for form in both for suffix in ("", "_greedy")} | {"batch8", "batch8_alone"}
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
    assert all(name in printed for name in result["seconds"])


@pytest.mark.parametrize("flags, message", [
    (["--num_masked", "9"], "num_masked must be from 1 to block_length (8), got 9"),
    (["--temperature", "0"], "temperature must be above 0"),
    (["--check_length", "7"], "check_length must be even"),
    (["--block_length", "6"], "gen_length (16) must be a multiple of block_length (6)"),
    (["--steps_measured", "0"], "steps_measured must be at least 1"),
    (["--device", "gpu"], "device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
    (["--json", "no/such/folder/result.json"], "its folder does not exist"),
])
def test_bad_options_are_refused_before_any_work(flags, message):
    with pytest.raises(SystemExit) as refused:
        generation.main([*SMALL, *flags])
    assert message in str(refused.value)
