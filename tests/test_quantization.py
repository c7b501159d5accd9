"""Weights in 8 and 4 bits: GPTQ files are read as they were packed, and the other ways
change the blocks' Linears and nothing else. What rounds activations computes is the matter
of test_scaled_linear.py.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llada_plugins import SamplerConfig, generate
from llada_plugins.methods.policy_head import PolicyHead, load_policy, save_policy
from llada_plugins.models.fingerprint import backbone_fingerprint
from llada_plugins.models.folder import TINY
from llada_plugins.models.gptq import PackedLinear
from llada_plugins.models.llada import BLOCKS, LLaDA
from llada_plugins.models.loading import load_model, save_model
from llada_plugins.models.quantization import (
    METHODS,
    NF4Linear,
    num_parameters,
    quantise_linear,
    quantization_of,
)
from llada_plugins.models.scaled_linear import FORMATS, ScaledLinear
from llada_plugins.models.tokenizer import load_tokenizer
from llada_plugins.models.weights import load_weights
from llada_plugins.tasks import sudoku
from tests.tolerance import forward_error, measured, rounding

pytestmark = pytest.mark.floats

CPU = dict(device="cpu", dtype="float32")
GPTQ = {
    "bits": 4,
    "group_size": 16,
    "quant_method": "gptq",
    "checkpoint_format": "gptq",
    "desc_act": True,
    "sym": False,
}
Q_PROJ = f"{BLOCKS}0.q_proj"
WEIGHT_ONLY = [method for method in METHODS if method not in FORMATS]


# ---- a second implementation of the packing, in Python's whole numbers


def signed(word: int) -> int:
    word %= 1 << 32
    return word - (1 << 32) if word >= 1 << 31 else word


def words(values: Sequence[int], less: int = 0) -> list[int]:
    """Eight 4-bit values to an int32, the first in the lowest bits; `less` is
    subtracted from each word.
    """
    return [
        signed(sum(value << 4 * k for k, value in enumerate(values[i : i + 8])) - less)
        for i in range(0, len(values), 8)
    ]


def packed(
    shape: tuple[int, int], config: dict, stream: random.Random
) -> tuple[dict[str, Tensor], Tensor]:
    """The four tensors of a random Linear (O, I), and its weight; every third zero
    point is 0, and inputs are in groups at random.
    """
    outputs, inputs = shape
    size = inputs if config["group_size"] == -1 else config["group_size"]
    groups = [i // size for i in range(inputs)]
    stream.shuffle(groups)
    num_groups = max(groups) + 1
    q = [[stream.randrange(16) for _ in range(outputs)] for _ in range(inputs)]  # (I, O)
    zero = [
        [stream.randrange(1, 16) if stream.randrange(3) else 0 for _ in range(outputs)]
        for _ in range(num_groups)
    ]
    scale = torch.tensor(
        [[stream.uniform(0.01, 0.05) for _ in range(outputs)] for _ in range(num_groups)]
    ).half()
    weight = [
        [scale[groups[i], o].item() * (q[i][o] - zero[groups[i]][o]) for i in range(inputs)]
        for o in range(outputs)
    ]
    columns = [words([q[i][o] for i in range(inputs)]) for o in range(outputs)]
    less = 0x11111111 if config["checkpoint_format"] == "gptq" else 0
    tensors = {
        "qweight": torch.tensor(columns, dtype=torch.int32).t().contiguous(),
        "scales": scale,
        "qzeros": torch.tensor([words(row, less) for row in zero], dtype=torch.int32),
        "g_idx": torch.tensor(groups, dtype=torch.int32),
    }
    return tensors, torch.tensor(weight)


def gptq_folder(
    folder: Path, model: LLaDA, config: dict = GPTQ, own_file: bool = False
) -> dict[str, Tensor]:
    """Write the model with random packed weights in its blocks; the weights that these
    stand for.
    """
    save_model(model, folder)
    state, stream, weights = load_file(folder / "model.safetensors"), random.Random(0), {}
    for name in [
        name
        for name, module in model.named_modules()
        if name.startswith(BLOCKS) and isinstance(module, nn.Linear)
    ]:
        tensors, weights[f"{name}.weight"] = packed(
            tuple(state.pop(f"{name}.weight").shape), config, stream
        )
        state.update({f"{name}.{leaf}": tensor for leaf, tensor in tensors.items()})
    save_file(state, folder / "model.safetensors")
    if own_file:
        (folder / "quantize_config.json").write_text(json.dumps(config))
    else:
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**raw, "quantization_config": config}))
    return weights


@pytest.fixture(scope="module")
def gptq(tmp_path_factory, make_model) -> Path:
    """A packed checkpoint; for reading only."""
    folder = tmp_path_factory.mktemp("gptq")
    gptq_folder(folder, make_model())
    return folder


def logits(model: LLaDA, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        return model(torch.randint(0, 38, (batch, 12), generator=generator))


# ---- GPTQ


@pytest.mark.parametrize("own_file", [False, True], ids=["config.json", "quantize_config.json"])
@pytest.mark.parametrize(
    "fields, model_fields",
    [
        ({}, {}),
        (dict(checkpoint_format="gptq_v2"), {}),
        (dict(group_size=-1), {}),
        (dict(group_size=40), dict(include_bias=True)),
        (dict(quant_method=None, checkpoint_format=None), dict(n_kv_heads=2)),
    ],
    ids=str,
)
def test_gptq_dequantises_what_an_independent_packer_packed(
    tmp_path, make_model, fields, model_fields, own_file
):
    config = {**GPTQ, **fields}
    weights = gptq_folder(
        tmp_path,
        make_model(**model_fields),
        {**GPTQ, **{n: v for n, v in config.items() if v}},
        own_file,
    )
    if None in fields.values():  # AutoGPTQ's first releases wrote neither name
        path = tmp_path / ("quantize_config.json" if own_file else "config.json")
        raw = json.loads(path.read_text())
        inner = raw if own_file else raw["quantization_config"]
        for name in fields:
            del inner[name]
        path.write_text(json.dumps(raw))
    dequantised, packed_model = (
        load_model(tmp_path, **CPU, quantize=quantize) for quantize in (None, "packed")
    )
    state = dequantised.state_dict()
    assert len(weights) == 14
    assert all(torch.equal(state[name], weight) for name, weight in weights.items())
    assert torch.equal(logits(dequantised), logits(packed_model))


def test_gptq_packed_is_dequantised_in_bfloat16_too(gptq):
    models = [
        load_model(gptq, device="cpu", dtype="bfloat16", quantize=quantize)
        for quantize in (None, "packed")
    ]
    assert torch.equal(logits(models[0]), logits(models[1]))
    assert logits(models[0]).dtype == torch.bfloat16


def test_gptq_packed_linears_take_four_bits_and_their_scales(gptq):
    model = load_model(gptq, **CPU, quantize="packed")
    linears = [module for name, module in model.named_modules() if isinstance(module, PackedLinear)]
    assert len(linears) == 14
    for linear in linears:
        inputs, outputs = linear.in_features, linear.out_features
        groups = inputs // 16
        assert (
            sum(buffer.nbytes for buffer in linear.buffers())
            == inputs * outputs / 2 + groups * outputs * (0.5 + 2) + 4 * inputs
        )
    assert not any(
        isinstance(module, nn.Linear)
        for name, module in model.named_modules()
        if name.startswith(BLOCKS)
    )


CONFIG_MISTAKES = {
    "bits": (
        dict(bits=8),
        r"bits=8, but only 4 can be read: give the checkpoint that it was made from, with "
        r"quantize=int8 or nf4",
    ),
    "no_bits": (dict(bits=None), r"bits=None, but only 4"),
    "method": (dict(quant_method="awq"), r"quant_method='awq', but only 'gptq' can be read"),
    "format": (
        dict(checkpoint_format="marlin"),
        r"checkpoint_format='marlin', but only 'gptq' or 'gptq_v2' can be read",
    ),
    "group": (
        dict(group_size=None),
        r"group_size=None, which must be a positive whole number, or -1",
    ),
    "zero_group": (dict(group_size=0), r"group_size=0, which must be"),
}


@pytest.mark.parametrize("mistake", CONFIG_MISTAKES)
def test_a_quantisation_that_cannot_be_read_is_named_before_weights_are_read(
    tmp_path, gptq, mistake
):
    fields, message = CONFIG_MISTAKES[mistake]
    raw = json.loads((gptq / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**raw, "quantization_config": {**GPTQ, **fields}})
    )
    (tmp_path / "weights.safetensors").write_bytes(b"never opened")
    names = dict.fromkeys(load_file(gptq / "model.safetensors"), "weights.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert re.search(message, error_of(tmp_path))


TENSOR_MISTAKES = {
    "missing": (f"{Q_PROJ}.qzeros", None, rf"missing {Q_PROJ}\.qzeros$"),
    "without_qweight": (f"{Q_PROJ}.qweight", None, rf"missing {Q_PROJ}\.qweight$"),
    "other_group_size": (
        f"{Q_PROJ}.scales",
        torch.ones(4, 32).half(),
        rf"{Q_PROJ}\.scales is \[4, 32\], expected \[2, 32\]",
    ),
    "other_type": (
        f"{Q_PROJ}.qweight",
        torch.zeros(4, 32),
        rf"{Q_PROJ}\.qweight is F32, expected I32",
    ),
    "twice": (f"{Q_PROJ}.weight", torch.zeros(32, 32), rf"left over {Q_PROJ}\.weight"),
    "nowhere": (
        f"{BLOCKS}0.gate.qweight",
        torch.zeros(4, 32, dtype=torch.int32),
        rf"left over {BLOCKS}0\.gate\.qweight",
    ),
}


@pytest.mark.parametrize("mistake", TENSOR_MISTAKES)
def test_a_packed_tensor_that_does_not_fit_is_named(tmp_path, gptq, mistake):
    name, tensor, message = TENSOR_MISTAKES[mistake]
    state = {**load_file(gptq / "model.safetensors"), name: tensor}
    (tmp_path / "config.json").write_bytes((gptq / "config.json").read_bytes())
    save_file(
        {name: tensor for name, tensor in state.items() if tensor is not None},
        tmp_path / "model.safetensors",
    )
    assert re.search(message, error_of(tmp_path))


def test_tensors_and_config_that_contradict_each_other_are_an_error(tmp_path, gptq, make_model):
    raw = json.loads((gptq / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((gptq / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(
        json.dumps({name: value for name, value in raw.items() if name != "quantization_config"})
    )
    assert (
        "(*.qweight), but neither config.json (quantization_config) nor quantize_config.json says "
        "how" in error_of(tmp_path)
    )
    save_model(make_model(), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert (
        "says gptq, but no tensor is packed (*.qweight): if its weights are plain, remove "
        "quantization_config" in error_of(tmp_path)
    )


# ---- int8 and NF4


def error_of(folder: Path | str | None, kind: type[Exception] = ValueError, **options) -> str:
    """The message that loading raises: one line."""
    with pytest.raises(kind) as caught:
        load_model(folder, **{**CPU, **options})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def kept_weight(module: nn.Module) -> Tensor:
    """The weight by which a quantised Linear multiplies."""
    ours = isinstance(module, (NF4Linear, ScaledLinear))
    return module.dequantised() if ours else module.weight.dequantize()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fields", [{}, dict(weight_tying=True), dict(include_bias=True)], ids=str)
def test_only_the_blocks_linears_are_quantised(tmp_path, make_model, method, fields):
    save_model(make_model(**fields), tmp_path)
    plain, model = load_model(tmp_path, **CPU), load_model(tmp_path, **CPU, quantize=method)
    plain_modules, num_changed = dict(plain.named_modules()), 0
    assert plain_modules.keys() == dict(model.named_modules()).keys()
    for name, module in model.named_modules():
        before = plain_modules[name]
        if name.startswith(BLOCKS) and isinstance(before, nn.Linear):
            num_changed += 1
            assert not torch.equal(kept_weight(module), before.weight)
            assert (
                module.bias is None
                if before.bias is None
                else torch.equal(module.bias, before.bias)
            )
        else:
            assert type(module) is type(before)
            for leaf, tensor in before.named_parameters(recurse=False):
                assert torch.equal(getattr(module, leaf), tensor)
                assert type(getattr(module, leaf)) is nn.Parameter
    assert num_changed == 14
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_the_policy_tower_of_a_remedi_checkpoint_is_left_alone(golden, method):
    model = load_model(golden / "remedi" / "checkpoint", **CPU, quantize=method)
    plain = {
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and type(module.weight) is nn.Parameter
    }
    assert plain == {
        name
        for name, module in load_model(golden / "remedi" / "checkpoint", **CPU).named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(BLOCKS)
    }


def with_kept_weights(plain: LLaDA, model: LLaDA) -> LLaDA:
    """The plain model, which is changed, with the weights by which the quantised one multiplies."""
    for name, module in plain.named_modules():
        if name.startswith(BLOCKS) and isinstance(module, nn.Linear):
            module.weight.data = kept_weight(model.get_submodule(name)).to(module.weight.dtype)
    return plain


@pytest.mark.parametrize("method", WEIGHT_ONLY)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantised_model_is_the_plain_one_with_the_rounded_weights(
    tmp_path, make_model, method, dtype
):
    save_model(make_model(include_bias=True), tmp_path)
    model, plain = (
        load_model(tmp_path, device="cpu", dtype=dtype, quantize=quantize)
        for quantize in (method, None)
    )
    oracle = with_kept_weights(plain, model)
    # int8 scales the product, the oracle the weight: rounding, in the dtype of the
    # activations
    torch.testing.assert_close(logits(model), logits(oracle), rtol=0, atol=measured(logits, oracle))


def rounded(weight: Tensor, method: str) -> Tensor:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight.clone()
    return kept_weight(quantise_linear(linear, method))


def test_int8_rounds_to_half_a_step_of_each_output():
    weight = torch.randn(96, 160, generator=torch.Generator().manual_seed(0))
    step = weight.abs().amax(1, keepdim=True) / 127  # (96, 1)
    # a scale, a quotient, a product
    assert ((rounded(weight, "int8") - weight).abs() <= 0.5 * step + rounding(3, weight)).all()


# 16 levels: the quantiles of a normal distribution that QLoRA's table lists
NF4_LEVELS = torch.tensor(
    [
        -1.0,
        -0.6961928,
        -0.5250731,
        -0.3949175,
        -0.2844414,
        -0.1847734,
        -0.0910500,
        0.0,
        0.0795803,
        0.1609302,
        0.2461123,
        0.3379152,
        0.4407098,
        0.5626170,
        0.7229568,
        1.0,
    ]
)


# rows of blocks, and not
@pytest.mark.parametrize("shape", [(96, 128), (96, 160), (128, 336), (7, 100)], ids=str)
def test_nf4_rounds_each_block_of_64_to_the_nearest_level(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    flat = torch.cat([weight.flatten(), torch.zeros(-weight.numel() % 64)]).view(-1, 64)
    largest = flat.abs().amax(1, keepdim=True)  # (blocks, 1)
    nearest = (
        NF4_LEVELS[(flat[..., None] / largest[..., None] - NF4_LEVELS).abs().argmin(-1)] * largest
    )
    expected = nearest.flatten()[: weight.numel()].view(shape)
    # A scale is kept in 8 bits, as its distance from the mean of all: there are 64
    # values from a tenth of the largest distance to the whole. No weight exceeds its
    # scale. Sums of all scales and a few products round.
    scale_error = float((largest - largest.mean()).abs().max()) * 0.9 / 64 / 2
    bound = scale_error + rounding(len(largest) + 4, largest)
    torch.testing.assert_close(rounded(weight, "nf4"), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("method, bytes_per_weight", [("int8", 1.0), ("nf4", 0.5 + 1 / 64)])
def test_a_quantised_linear_takes_as_many_bytes_as_stated(method, bytes_per_weight):
    linear = quantise_linear(nn.Linear(1024, 512, bias=False), method)
    if method == "int8":
        assert type(linear.weight.qdata) is Tensor and linear.weight.qdata.dtype == torch.int8
        parts = [value for value in vars(linear.weight).values() if isinstance(value, Tensor)]
    else:
        state = linear.state
        parts = [
            linear.packed,
            state.absmax,
            state.code,
            state.offset,
            state.state2.absmax,
            state.state2.code,
        ]
    exact = 1024 * 512 * bytes_per_weight
    # int8: scale and zero point of each output
    assert exact <= sum(part.nbytes for part in parts) <= exact + 5 * 512 + 2048


@pytest.fixture(scope="module")
def answers():
    """A function from quantize= to the shipped model's answers to the first problems."""
    tokenizer = load_tokenizer(TINY)
    prompts = [tokenizer.encode(problem.puzzle) for problem in sudoku.problems("test", 40)]
    sampler = SamplerConfig(gen_length=16, block_length=16, steps=16)
    return lambda quantize: [
        tokenizer.decode(sample.answer)
        for sample in generate(load_model(**CPU, quantize=quantize), prompts, sampler)
    ]


@pytest.fixture(scope="module")
def plain_answers(answers) -> list[str]:
    return answers(None)


# measured on 200 problems: accuracy 1.000, nf4 .995 (plain 1.000); the same answer as
# plain, by weights less sure of their tokens, .985, .930, .855, .825
@pytest.mark.parametrize(
    "method, same", [("int8", 0.9), ("int8_dynamic", 0.8), ("fp8", 0.7), ("nf4", 0.65)]
)
def test_the_shipped_model_keeps_its_accuracy(method, same, answers, plain_answers):
    found = answers(method)
    solved = sum(
        sudoku.is_valid(problem.puzzle, answer)
        for problem, answer in zip(sudoku.problems("test", 40), found)
    )
    assert solved >= 0.92 * len(found)
    assert sum(answer == before for answer, before in zip(found, plain_answers)) >= same * len(
        found
    )


@pytest.mark.parametrize("quantize", [*WEIGHT_ONLY, "packed"])
def test_a_row_does_not_depend_on_its_batch(gptq, quantize):
    model = load_model(gptq if quantize == "packed" else None, **CPU, quantize=quantize)
    tokens = torch.randint(0, 38, (4, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, 20, dtype=torch.long)
    mask[1, :7] = 0  # left padding
    with torch.inference_mode():
        batch, alone = model(tokens, mask)[1, 7:], model(tokens[1:2, 7:])[0]
    plain = (
        load_model(gptq, **CPU)
        if quantize == "packed"
        else with_kept_weights(load_model(**CPU), model)
    )
    # the size of the matrices orders the sums
    torch.testing.assert_close(batch, alone, rtol=0, atol=forward_error(plain))


@pytest.mark.parametrize("method", METHODS)
def test_quantize_reaches_other_modules_by_the_name_of_their_blocks(tmp_path, method):
    """As a process reward model has: other names, biases, a head that stays."""

    def module() -> nn.Module:
        return nn.ModuleDict(
            {
                "model": nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(64, 64)])}),
                "score": nn.Linear(64, 2),
            }
        )

    source = module()
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with torch.device("meta"):
        filled = module()
    files = dict.fromkeys(source.state_dict(), tmp_path / "model.safetensors")
    options = dict(
        device=torch.device("cpu"), dtype=torch.float32, source=tmp_path, quantize=method
    )
    with pytest.raises(
        ValueError, match=f"quantize={method} would change nothing: the blocks of .* have no Linear"
    ):
        load_weights(filled, files, **options, blocks="transformer.h.")
    record = load_weights(filled, files, **options, blocks="model.layers.")
    assert record.method.startswith(method) and record.num_parameters == 64 * 65 + 2 * 65
    layer = filled["model"]["layers"][0]
    before = source["model"]["layers"][0]
    x = torch.randint(-8, 9, (5, 64), generator=torch.Generator().manual_seed(0)).float()
    if method in FORMATS:  # then every scale is 1, and rounding leaves x as it is
        x[:, 0] = FORMATS[method].largest
    assert torch.equal(filled["score"].weight, source["score"].weight)
    weight = kept_weight(layer)
    # of either side: 64 products, a bias, a scale
    bound = rounding(2 * 66, x.abs() @ weight.abs().t() + before.bias.abs())
    torch.testing.assert_close(layer(x), x @ weight.t() + before.bias, rtol=0, atol=bound)


# ---- what is recorded, what fits, what is refused


def test_the_quantisation_is_recorded_with_the_size_of_the_model_before(gptq):
    plain = load_model(**CPU)
    assert quantization_of(plain) is None
    for method, (package, *_) in METHODS.items():
        model = load_model(**CPU, quantize=method)
        assert re.fullmatch(rf"{method} \({package} [\d.]+.*\)", quantization_of(model).method)
        assert num_parameters(model) == num_parameters(plain)
    for quantize, words in ((None, "gptq 4-bit, dequantised"), ("packed", "gptq 4-bit, packed")):
        model = load_model(gptq, **CPU, quantize=quantize)
        assert quantization_of(model).method == words
        assert num_parameters(model) == sum(
            parameter.numel() for parameter in load_model(gptq, **CPU).parameters()
        )


@pytest.mark.parametrize("method", METHODS)
def test_a_head_trained_on_the_plain_backbone_fits_the_quantised_one_and_no_other(
    method, tmp_path, make_model
):
    model = load_model(**CPU, quantize=method)
    assert backbone_fingerprint(model) == backbone_fingerprint(load_model(**CPU))
    load_policy(TINY / "ups", model)
    save_model(make_model(), tmp_path / "a")
    save_policy(
        PolicyHead(32, 8), tmp_path / "ups", backbone_fingerprint(load_model(tmp_path / "a", **CPU))
    )
    load_policy(
        tmp_path / "ups",
        load_model(tmp_path / "a", device="cpu", dtype="bfloat16", quantize=method),
    )
    save_model(make_model(seed=1), tmp_path / "b")
    with pytest.raises(ValueError, match="was trained on another backbone"):
        load_policy(tmp_path / "ups", load_model(tmp_path / "b", **CPU, quantize=method))


def test_a_head_trained_on_a_gptq_checkpoint_fits_it_packed_or_not_and_one_of_its_original_does_not(
    gptq, tmp_path, make_model
):
    models = [
        load_model(gptq, device="cpu", dtype=dtype, quantize=quantize)
        for dtype in ("float32", "bfloat16")
        for quantize in (None, "packed")
    ]
    assert len({backbone_fingerprint(model) for model in models}) == 1
    save_policy(PolicyHead(32, 8), tmp_path / "own", backbone_fingerprint(models[0]))
    save_policy(PolicyHead(32, 8), tmp_path / "original", backbone_fingerprint(make_model()))
    for model in models:
        load_policy(tmp_path / "own", model)
        with pytest.raises(
            ValueError,
            match="another backbone.*a GPTQ checkpoint has other weights than the model it was "
            "made from",
        ):
            load_policy(tmp_path / "original", model)


def test_the_fingerprint_of_a_dequantised_model_follows_its_weights(gptq):
    model = load_model(gptq, **CPU)
    before = backbone_fingerprint(model)
    model.get_submodule(Q_PROJ).weight.data[0, 0] += 1
    assert backbone_fingerprint(model) != before


def test_a_quantised_model_is_not_saved_and_a_dequantised_one_is(gptq, tmp_path):
    models = [load_model(**CPU, quantize=method) for method in METHODS]
    for model in (*models, load_model(gptq, **CPU, quantize="packed")):
        with pytest.raises(
            ValueError,
            match="is not saved: save the model that it was loaded from, and quantise at load",
        ):
            save_model(model, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    save_model(model := load_model(gptq, **CPU), tmp_path / "plain")
    assert torch.equal(logits(load_model(tmp_path / "plain", **CPU)), logits(model))


def test_a_quantisation_that_does_not_suit_the_checkpoint_is_refused(tmp_path, gptq):
    assert error_of(tmp_path / "none", quantize="int4") == (
        "quantize must be none or one of int8, int8_dynamic, fp8, nf4, packed, got 'int4'"
    )
    assert re.search(
        "quantize=nf4 is for checkpoints in full precision, .* is GPTQ 4-bit: leave it out",
        error_of(gptq, quantize="nf4"),
    )
    assert re.search(
        "quantize=packed is for GPTQ checkpoints, and .* is none", error_of(None, quantize="packed")
    )


@pytest.mark.parametrize("method", WEIGHT_ONLY)
def test_a_missing_package_is_named_with_its_install_line_before_the_folder_is_looked_at(
    tmp_path, monkeypatch, method
):
    package = METHODS[method].package
    monkeypatch.setitem(sys.modules, package, None)
    message = error_of(tmp_path / "none", ImportError, quantize=method)
    assert message.startswith(f"quantize={method} needs {package} (")
    assert message.endswith("pip install 'llada-plugins[quantize]'")
