"""UPS: the light head's arithmetic and its files, RemeDi's bi-tower, and which of the
two ranks what.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llada_plugins.diffusion.denoiser import PADDING, Canvas, Denoiser, model_denoiser
from llada_plugins.diffusion.guidance import guided, suppressed
from llada_plugins.methods.policy_head import (
    CONFIG,
    WEIGHTS,
    PolicyHead,
    load_policy,
    policy_denoiser,
    save_policy,
)
from llada_plugins.models.bitower import AFTER_LAYERS, BiTowerLLaDA
from llada_plugins.models.fingerprint import FINGERPRINT_VALUES, backbone_fingerprint
from llada_plugins.models.folder import read_config
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.loading import load_model, save_model
from llada_plugins.models.special_tokens import SpecialTokens
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.draft import Sample
from llada_plugins.sampling.generate import generate
from llada_plugins.sampling.step import Step
from tests.tolerance import forward_error, measured, rounding

pytestmark = pytest.mark.floats

MASK = 39


def random_head(d_model: int = 32, width: int = 24, seed: int = 5) -> PolicyHead:
    head, generator = PolicyHead(d_model, width), torch.Generator().manual_seed(seed)
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return head.requires_grad_(False)


@pytest.fixture
def saved(tmp_path, make_model) -> tuple[Path, LLaDA]:
    """A head's folder, which a test may damage, and its backbone."""
    model = make_model()
    save_policy(
        random_head(),
        tmp_path / "ups",
        backbone_fingerprint(model),
        {"command": "python -m training.remask_sft", "seed": 3},
    )
    return tmp_path / "ups", model


def edit_tensors(path: Path, **tensors: torch.Tensor | None) -> None:
    state = {**load_file(path), **tensors}
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, path)


def edit_json(path: Path, **fields) -> None:
    """Set keys of a JSON file; the value `...` removes one."""
    raw = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in raw.items() if value is not ...}))


# ---- the light head


def score_by_hand(head: PolicyHead, hidden: torch.Tensor) -> float:
    """Linear, GELU x Phi(x), Linear of one hidden state (D,), in Python's doubles."""
    state = {name: tensor.double() for name, tensor in head.state_dict().items()}
    values = hidden.double().tolist()
    if head.width:
        values = (state["up.weight"] @ hidden.double() + state["up.bias"]).tolist()
        values = [value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in values]
    return sum(
        weight * value for weight, value in zip(state["out.weight"][0].tolist(), values)
    ) + float(state["out.bias"])


def score_error(head: PolicyHead, hidden: torch.Tensor) -> float:
    """Bound of a score's rounding: both sums, a GELU between, whose slope is at most
    1.13, and the size of all terms.
    """
    size, depth = hidden.abs(), 1
    for linear in filter(None, (head.up, head.out)):
        size = 1.13 * (size @ linear.weight.abs().t() + linear.bias.abs())
        depth += linear.in_features + 8
    return rounding(depth, size)


@pytest.mark.parametrize("width", [0, 1, 24])
@pytest.mark.parametrize("shape", [(), (7,), (2, 5)], ids=str)
def test_the_head_gives_one_fp32_score_a_position_equal_to_the_formula(width, shape):
    head = random_head(width=width)
    hidden = torch.randn(*shape, 32, generator=torch.Generator().manual_seed(0))
    score = head(hidden)
    assert score.shape == shape and score.dtype == torch.float32
    expected = [score_by_hand(head, row) for row in hidden.reshape(-1, 32)]
    assert score.reshape(-1).tolist() == pytest.approx(expected, abs=score_error(head, hidden))
    assert head(hidden.bfloat16()).dtype == torch.float32


def test_a_head_of_width_zero_is_linear():
    head, generator = random_head(width=0), torch.Generator().manual_seed(1)
    assert sorted(head.state_dict()) == ["out.bias", "out.weight"]
    first, second = torch.randn(2, 6, 32, generator=generator)
    bias = head(torch.zeros(32))
    bound = 5 * score_error(head, first.abs() + 2 * second.abs())  # of five scores at most
    torch.testing.assert_close(
        head(first + 2 * second) - bias,
        head(first) - bias + 2 * (head(second) - bias),
        atol=bound,
        rtol=0,
    )
    assert (head(-first) - bias + head(first) - bias).abs().max() < bound
    curved = random_head(width=24)
    assert (curved(-first) + curved(first) - 2 * curved(torch.zeros(32))).abs().max() > 0.1


@pytest.mark.parametrize("width", [0, 24])
def test_saving_then_loading_a_head_is_bit_equal_and_ready_for_inference(
    tmp_path, make_model, width
):
    model, head = make_model(), random_head(width=width)
    for name in ("first", "second"):
        save_policy(head, tmp_path / name, backbone_fingerprint(model), {"command": "x"})
        loaded = load_policy(tmp_path / name, model)
        assert (loaded.d_model, loaded.width, loaded.training) == (32, width, False)
        state, expected = loaded.state_dict(), head.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in state)
        assert not any(
            parameter.requires_grad or parameter.is_meta for parameter in loaded.parameters()
        )
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert (tmp_path / "first" / WEIGHTS).stat().st_mode & 0o777 == 0o644


def test_a_head_says_what_it_is_whose_it_is_and_how_it_was_made(saved):
    folder, model = saved
    assert json.loads((folder / CONFIG).read_text()) == {
        "kind": "mlp",
        "d_model": 32,
        "width": 24,
        "backbone": backbone_fingerprint(model),
        "command": "python -m training.remask_sft",
        "seed": 3,
    }


def test_a_head_stays_in_fp32_on_a_bfloat16_backbone(saved, tmp_path):
    folder, model = saved
    save_model(model, tmp_path / "model")
    half = load_model(tmp_path / "model", device="cpu", dtype="bfloat16")
    head = load_policy(folder, half)
    assert head.out.weight.dtype == torch.float32
    canvas = Canvas(torch.tensor([[5, 6, MASK, MASK]]), torch.tensor([2]))
    assert policy_denoiser(half, head)(canvas, slice(2, 4)).confidence.dtype == torch.float32


HEAD_MISTAKES = {
    "no config": (lambda folder: (folder / CONFIG).unlink(), r"ups has no ups_config\.json"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), r"ups has no ups\.safetensors"),
    "torn config": (
        lambda folder: (folder / CONFIG).write_text("{"),
        r"ups_config\.json is not valid JSON",
    ),
    "torn weights": (
        lambda folder: (folder / WEIGHTS).write_bytes(b"torn"),
        r"ups\.safetensors is not a readable safetensors file",
    ),
    "left over": (
        lambda folder: edit_tensors(folder / WEIGHTS, **{"norm.weight": torch.ones(32)}),
        r"left over norm\.weight",
    ),
    "missing": (
        lambda folder: edit_tensors(folder / WEIGHTS, **{"out.bias": None}),
        r"missing out\.bias",
    ),
    "shape": (
        lambda folder: edit_tensors(folder / WEIGHTS, **{"up.bias": torch.ones(23)}),
        r"up\.bias is \[23\], expected \[24\]",
    ),
    "other width": (
        lambda folder: edit_json(folder / CONFIG, width=16),
        r"up\.bias is \[24\], expected \[16\]",
    ),
    "linear": (lambda folder: edit_json(folder / CONFIG, width=0), r"left over up\.bias"),
    "other d_model": (
        lambda folder: edit_json(folder / CONFIG, d_model=48),
        r"reads hidden states of width 48, the model's have 32: give the head that was trained on "
        r"this model",
    ),
    "other backbone": (
        lambda folder: edit_json(folder / CONFIG, backbone="0123"),
        r"another backbone \(fingerprint 0123, this model's is [0-9a-f]{16}\): give pretrained= "
        r".* or train a head",
    ),
    "unknown kind": (
        lambda folder: edit_json(folder / CONFIG, kind="prism"),
        "kind is 'prism', expected \"mlp\"",
    ),
}


@pytest.mark.parametrize("mistake", HEAD_MISTAKES)
def test_a_head_that_does_not_fit_is_refused_in_one_line_that_names_the_thing(saved, mistake):
    folder, model = saved
    damage, message = HEAD_MISTAKES[mistake]
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_policy(folder, model)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_head_refuses_other_weights_and_other_shapes_of_model(saved, make_model):
    folder, model = saved
    assert load_policy(folder, model).width == 24
    for other, message in (
        (make_model(seed=1), "another backbone"),
        (make_model(d_model=16), "the model's have 16"),
        (make_model(n_layers=3), "another backbone"),
    ):
        with pytest.raises(ValueError, match=message):
            load_policy(folder, other)


# ---- the fingerprint of a backbone


def test_the_fingerprint_does_not_depend_on_the_dtype_of_the_load(tmp_path, make_model):
    model = make_model()
    for parameter in model.parameters():
        parameter.data = parameter.bfloat16().float()
    save_model(model, tmp_path)
    found = {
        backbone_fingerprint(load_model(tmp_path, device="cpu", dtype=dtype))
        for dtype in ("float32", "bfloat16")
    }
    assert found == {backbone_fingerprint(model)}


def test_the_fingerprint_changes_with_the_first_values_of_any_tensor(make_model):
    model = make_model()
    seen = {backbone_fingerprint(model)}
    tensors = model.state_dict().values()
    for tensor in tensors:
        flat = tensor.view(-1)  # shares memory with the model
        for place in (0, min(len(flat), FINGERPRINT_VALUES) - 1):
            before = flat[place].clone()
            flat[place] += 0.5
            seen.add(backbone_fingerprint(model))
            flat[place] = before
    assert len(seen) == 1 + 2 * len(tensors)
    assert backbone_fingerprint(model) in seen
    assert backbone_fingerprint(make_model(seed=1)) not in seen


# ---- the light head as a denoiser


def scores_error(model: LLaDA, head: PolicyHead) -> float:
    """Bound of how much two float32 scores of the head on the model's hidden states
    differ: of rows together, and of one alone.
    """
    tokens = torch.randint(0, MASK, (8, 24), generator=torch.Generator().manual_seed(0))
    return measured(
        lambda model, head: torch.cat(
            [head(model.hidden_states(rows)) for rows in (tokens, *tokens.split(1))]
        ),
        model,
        head,
    )


@pytest.mark.parametrize("scale", [None, 1.5], ids=["plain", "guided"])
def test_the_denoisers_confidence_is_the_head_on_the_conditional_hidden_state(make_model, scale):
    model, head = make_model(), random_head()
    denoise = policy_denoiser(model, head)
    if scale is not None:
        denoise = guided(denoise, scale, MASK)
    rows = [[PADDING, PADDING, 5, MASK, 7, MASK], [8, 9, 10, 11, MASK, 4]]
    prediction = denoise(Canvas(torch.tensor(rows), torch.tensor([3, 3])), slice(3, 6))
    bound = scores_error(model, head)
    assert prediction.confidence.shape == (2, 3) and not prediction.ranks_masked
    for row, confidence in zip(rows, prediction.confidence):
        tokens = torch.tensor([[token for token in row if token != PADDING]])  # no padding here
        hidden = model.hidden_states(tokens)[0, -3:]
        assert confidence.tolist() == pytest.approx(
            [score_by_hand(head, state) for state in hidden], abs=bound
        )


def test_the_heads_denoiser_predicts_what_the_plain_one_does(make_model):
    model = make_model()
    canvas = Canvas(torch.tensor([[PADDING, 5, MASK, 7], [8, 9, MASK, MASK]]), torch.tensor([2, 2]))
    at = torch.tensor([[0, 1], [1, 0]])
    plain, scored = (
        denoise(canvas, slice(2, 4))
        for denoise in (model_denoiser(model), policy_denoiser(model, random_head()))
    )
    assert torch.equal(plain.logits_at(at), scored.logits_at(at))
    assert plain.confidence is None


def test_ups_scores_visible_tokens_by_the_head_and_masked_ones_by_probability(make_model):
    model, head = make_model(), random_head()
    scores: dict[str, list[Step]] = {"ups": [], "ups_all": []}
    denoise, prompt, special = policy_denoiser(model, head), [5, 6, 7], SpecialTokens(MASK)
    tokens: list[torch.Tensor] = []

    def watched(canvas: Canvas, window: slice):
        tokens.append(canvas.tokens.clone())
        return denoise(canvas, window)

    for source, steps in scores.items():
        tokens.clear()
        config = SamplerConfig(gen_length=8, steps=4, revise=True, confidence_source=source)
        generate(model, [prompt], config, special=special, denoise=watched, on_step=steps.append)
        for step, row in zip(steps, tokens):
            hidden = model.hidden_states(row)[:, 3:]
            probability = (
                model.head(hidden).softmax(-1).gather(-1, step.proposal[..., None])[..., 0]
            )
            by_head = source == "ups_all" or row[:, 3:] != MASK
            expected = torch.where(torch.as_tensor(by_head), head(hidden).sigmoid(), probability)
            # logits of fewer columns: another sum order. A sigmoid is at most 1/4
            # steep, a softmax at most as steep as log-softmax
            torch.testing.assert_close(
                step.score,
                expected,
                atol=max(scores_error(model, head), 2 * forward_error(model)),
                rtol=0,
            )


# ---- RemeDi's bi-tower


@pytest.fixture(scope="module")
def remedi(golden) -> tuple[LLaDA, dict[str, torch.Tensor]]:
    folder = golden / "remedi"
    return load_model(folder / "checkpoint", device="cpu", dtype="float32"), load_file(
        folder / "outputs.safetensors"
    )


@pytest.fixture
def tower(golden, tmp_path) -> Path:
    """A bi-tower checkpoint that a test may damage."""
    folder = Path(shutil.copytree(golden / "remedi" / "checkpoint", tmp_path / "remedi"))
    for path in [folder, *folder.iterdir()]:
        path.chmod(0o755)
    return folder


def tower_error(model: LLaDA, recorded: dict[str, torch.Tensor]) -> float:
    """Bound of how much two float32 scores of the tower differ: of rows together, and
    of each alone.
    """
    ids = recorded["input_ids"]
    return measured(
        lambda of: torch.cat([of.streams(rows).confidence for rows in (ids, *ids.split(1))]), model
    )


def outputs(
    model: LLaDA, ids: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    streams = model.streams(ids, attention_mask)
    return model.head(streams.hidden), streams.confidence


@pytest.mark.parametrize("padded", [False, True], ids=["plain", "left-padded"])
def test_the_bi_towers_logits_are_the_heads_of_its_hidden_state_and_its_confidence_is_in_fp32(
    remedi, padded
):
    model, recorded = remedi
    prefix, mask = ("padded_", recorded["attention_mask"]) if padded else ("", None)
    ids = recorded[f"{prefix}input_ids"]
    logits, confidence = outputs(model, ids, mask)
    assert torch.equal(model(ids, mask), logits)
    assert confidence.dtype == torch.float32


def test_a_bi_tower_row_scores_the_same_padded_and_alone(remedi):
    model, recorded = remedi
    row = recorded["input_ids"][0, :9].tolist()
    window, start = slice(10, 14), torch.tensor([10, 10])
    tokens = torch.tensor([[PADDING] * 5 + row, recorded["input_ids"][1, :14].tolist()])
    together = model_denoiser(model)(Canvas(tokens, start), window)
    alone = model_denoiser(model)(Canvas(torch.tensor([row]), torch.tensor([5])), slice(5, 9))
    assert together.ranks_masked and alone.ranks_masked
    torch.testing.assert_close(
        together.confidence[:1], alone.confidence, atol=tower_error(model, recorded), rtol=0
    )


def test_guidance_and_suppression_keep_the_towers_score_and_what_it_ranks(remedi):
    model, recorded = remedi
    canvas, window = Canvas(recorded["input_ids"][:2, :14], torch.tensor([10, 10])), slice(10, 14)
    plain = model_denoiser(model)
    expected = plain(canvas, window)
    for wrapped in (guided(plain, 1.5, 336), suppressed(plain, [81])):
        found = wrapped(canvas, window)
        assert found.ranks_masked
        bound = tower_error(model, recorded)  # a batch of twice the rows
        torch.testing.assert_close(found.confidence, expected.confidence, atol=bound, rtol=0)


def test_the_bi_tower_lists_as_many_states_as_a_plain_model(remedi):
    model, recorded = remedi
    ids = recorded["input_ids"][:1]
    states = model.hidden_states(ids, every_layer=True)
    assert len(states) == 32 + 1
    assert torch.equal(states[0], model.embedding(ids))
    assert torch.equal(states[-1], model.hidden_states(ids))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        dict(model_type="llada", architectures=["FSDPLLaDAUPMModelLM"]),
        dict(model_type="llada", architectures=["LLaDAModelLM"]),
        dict(architectures=...),
        dict(model_type=...),
    ],
    ids=str,
)
def test_a_bi_tower_is_known_by_its_tensors_whatever_its_config_says(tower, remedi, fields):
    edit_json(tower / "config.json", **fields)
    model = load_model(tower, device="cpu", dtype="float32")
    assert isinstance(model, BiTowerLLaDA) and read_config(tower).family == "remedi"
    assert torch.equal(model(remedi[1]["input_ids"]), remedi[0](remedi[1]["input_ids"]))


def test_a_sharded_bi_tower_is_known_by_its_index(tower, remedi):
    state = load_file(tower / "model.safetensors")
    (tower / "model.safetensors").unlink()
    weight_map = {name: f"part-{number % 3}.safetensors" for number, name in enumerate(state)}
    for part in set(weight_map.values()):
        save_file({name: state[name] for name in state if weight_map[name] == part}, tower / part)
    (tower / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    model = load_model(tower, device="cpu", dtype="float32")
    assert all(
        torch.equal(tensor, remedi[0].state_dict()[name])
        for name, tensor in model.state_dict().items()
    )


def test_saving_then_loading_a_bi_tower_is_bit_equal(tmp_path, remedi):
    save_model(remedi[0], tmp_path)
    loaded = load_model(tmp_path, device="cpu", dtype="float32")
    assert isinstance(loaded, BiTowerLLaDA) and len(loaded.state_dict()) == 291 + 51
    assert all(
        torch.equal(tensor, remedi[0].state_dict()[name])
        for name, tensor in loaded.state_dict().items()
    )


def test_every_tower_tensor_is_accounted_for(tower):
    names = [
        name
        for name in load_file(tower / "model.safetensors")
        if not name.startswith("model.transformer.")
    ]
    assert len(names) == 51
    whole = (tower / "model.safetensors").read_bytes()
    for name in (
        "model.blocks_upm.2.q_proj.weight",
        "model.backprop_linears.0.bias",
        "model.backprop_norms.3.weight",
        "model.ln_f_upm.weight",
        "model.linear_confidence.bias",
    ):
        assert name in names
        edit_tensors(tower / "model.safetensors", **{name: None})
        with pytest.raises(ValueError, match=f"missing {name}$"):
            load_model(tower, device="cpu")
        (tower / "model.safetensors").write_bytes(whole)
    edit_tensors(
        tower / "model.safetensors", **{"model.blocks_upm.4.q_proj.weight": torch.zeros(32, 32)}
    )
    with pytest.raises(ValueError, match=r"left over model\.blocks_upm\.4\.q_proj\.weight$"):
        load_model(tower, device="cpu")


def test_a_plain_checkpoint_with_a_stray_tower_tensor_is_not_a_llada(tmp_path, make_model):
    save_model(make_model(), tmp_path)
    edit_tensors(tmp_path / "model.safetensors", **{"model.linear_confidence.bias": torch.zeros(1)})
    with pytest.raises(ValueError, match="left over model.linear_confidence.bias"):
        load_model(tmp_path, device="cpu")


def test_without_the_tower_remedis_config_is_a_foreign_architecture(tower):
    state = load_file(tower / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in state.items() if name.startswith("model.transformer.")},
        tower / "model.safetensors",
    )
    with pytest.raises(
        ValueError,
        match=r"architectures is \['RemeDiUPMModelLM'\], expected one of .*: no family that "
        r"loads here",
    ):
        load_model(tower, device="cpu")


@pytest.mark.parametrize("n_layers", [2, 30])
def test_a_tower_needs_its_last_layer(tower, n_layers):
    edit_json(tower / "config.json", n_layers=n_layers)
    with pytest.raises(
        ValueError,
        match=r"RemeDi's tower follows layers \(0, 10, 20, 30\), but this config has "
        rf"n_layers={n_layers}",
    ):
        load_model(tower, device="cpu")


@pytest.mark.parametrize("number", range(len(AFTER_LAYERS)))
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_token_logits_depend_on_the_towers_feedback(tower, remedi, number, part):
    name = f"model.backprop_linears.{number}.{part}"
    edit_tensors(
        tower / "model.safetensors",
        **{name: torch.zeros_like(load_file(tower / "model.safetensors")[name])},
    )
    logits, _ = outputs(load_model(tower, device="cpu", dtype="float32"), remedi[1]["input_ids"])
    bound = measured(lambda of: outputs(of, remedi[1]["input_ids"])[0], remedi[0])
    assert (logits - remedi[1]["logits"]).abs().max() > 100 * bound


def test_dropping_the_tower_changes_the_token_logits(tower, remedi):
    state = load_file(tower / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in state.items() if name.startswith("model.transformer.")},
        tower / "model.safetensors",
    )
    edit_json(tower / "config.json", architectures=["LLaDAModelLM"])
    logits, confidence = outputs(
        load_model(tower, device="cpu", dtype="float32"), remedi[1]["input_ids"]
    )
    assert confidence is None and (logits - remedi[1]["logits"]).abs().max() > 1e-2


def remedi_run(
    model: LLaDA, source: str, denoise: Denoiser | None = None
) -> tuple[list[Sample], list[Step]]:
    steps: list[Step] = []
    config = SamplerConfig(
        gen_length=12, block_length=6, steps=6, revise=True, confidence_source=source
    )
    return generate(
        model, [[5, 6, 7], [8, 9]], config, denoise=denoise, on_step=steps.append
    ), steps


def test_on_a_bi_tower_ups_is_the_papers_rule_h_at_every_position(remedi):
    model, _ = remedi
    samples, steps = remedi_run(model, "ups")
    assert samples == remedi_run(model, "ups_all")[0] != remedi_run(model, "tps_prob")[0]
    start = torch.tensor([[5, 6, 7] + [336] * 12])
    expected = model.streams(start).confidence[:, 3:9].sigmoid()
    bound = tower_error(model, remedi[1])  # a sigmoid is at most 1/4 steep
    # masked positions, all of them
    torch.testing.assert_close(steps[0].score[:1], expected, atol=bound, rtol=0)
    plain = model_denoiser(model)
    visible_only = remedi_run(
        model, "ups", lambda canvas, window: plain(canvas, window)._replace(ranks_masked=False)
    )[1]
    assert (visible_only[0].score - steps[0].score).abs().max() > 100 * bound
