"""The files of an ALA router: saved and loaded to the bit, and refused in one line
wherever they do not fit the model.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llada_plugins.methods.router import (
    CONFIG,
    WEIGHTS,
    Router,
    RouterConfig,
    load_router,
    save_router,
)
from llada_plugins.models.fingerprint import backbone_fingerprint
from llada_plugins.models.llada import LLaDA


def random_router(**fields) -> Router:
    """A router of width 32, as make_model's models have, with every parameter random."""
    router, generator = Router(RouterConfig(d_model=32, **fields)), torch.Generator().manual_seed(0)
    for parameter in router.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return router


@pytest.fixture(scope="module")
def model(make_model) -> LLaDA:
    return make_model()


@pytest.fixture
def saved(tmp_path, model) -> Path:
    save_router(
        random_router(layers=2, mlp=24),
        tmp_path / "router",
        backbone_fingerprint(model),
        {"training": {"steps": 3}},
    )
    return tmp_path / "router"


def edit(folder: Path, tensors: dict[str, Tensor | None] | None = None, **fields) -> None:
    """Change the router's files; None removes."""
    state = {**load_file(folder / WEIGHTS), **(tensors or {})}
    save_file(
        {name: tensor for name, tensor in state.items() if tensor is not None}, folder / WEIGHTS
    )
    raw = {**json.loads((folder / CONFIG).read_text()), **fields}
    (folder / CONFIG).write_text(
        json.dumps({name: value for name, value in raw.items() if value is not None})
    )


SHAPES = [
    dict(mode="replace"),
    dict(layers=2, mlp=24),
    dict(heads=1, max_positions=8),
    dict(use_prompt=False),
    dict(blocks=2, scale=0.5),
]


@pytest.mark.parametrize("fields", SHAPES, ids=str)
def test_saving_then_loading_a_router_is_bit_equal_and_ready_for_inference(tmp_path, model, fields):
    router = random_router(**fields)
    save_router(router, tmp_path, backbone_fingerprint(model))
    loaded = load_router(tmp_path, model)
    state = loaded.state_dict()
    assert loaded.config == router.config
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert state.keys() == router.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in router.state_dict().items())


def test_a_router_stays_in_fp32_before_a_bfloat16_backbone_and_knows_it(tmp_path, make_model):
    save_router(random_router(), tmp_path, backbone_fingerprint(make_model()))
    assert {
        parameter.dtype for parameter in load_router(tmp_path, make_model().bfloat16()).parameters()
    } == {torch.float32}


def test_a_router_file_says_what_it_is_whose_it_is_and_how_it_was_made(saved, model):
    raw = json.loads((saved / CONFIG).read_text())
    assert (raw["mode"], raw["layers"], raw["backbone"], raw["training"]) == (
        "residual",
        2,
        backbone_fingerprint(model),
        {"steps": 3},
    )
    assert (saved / WEIGHTS).stat().st_mode & 0o777 == 0o644
    load_router(saved, model)


MISTAKES = {
    "width": (
        lambda folder: edit(folder, d_model=64),
        "makes embeddings of width 64, the model's have 32: give the router that",
    ),
    "no width": (
        lambda folder: edit(folder, d_model=None),
        "d_model is missing, expected a whole number from 1 to",
    ),
    "backbone": (
        lambda folder: edit(folder, backbone="0123456789abcdef"),
        r"trained on another backbone \(fingerprint 0123456789abcdef",
    ),
    "backbone of two lines": (
        lambda folder: edit(folder, backbone="0\n1"),
        r"trained on another backbone \(fingerprint 0\\n1, this model's",
    ),
    "key": (
        lambda folder: edit(folder, layer=2),
        r"unknown key of .*router_config.json: 'layer' \(did you mean 'layers'\?\)",
    ),
    "mode": (
        lambda folder: edit(folder, mode="add"),
        "mode must be one of 'residual', 'replace', got 'add'",
    ),
    "heads": (
        lambda folder: edit(folder, heads=5),
        r"d_model \(32\) of a router must be a multiple of heads \(5\)",
    ),
    "scale": (lambda folder: edit(folder, scale=0.0), "scale of a router must be above 0, got 0.0"),
    "blocks": (
        lambda folder: edit(folder, blocks=0),
        "blocks of a router must be at least 1, got 0",
    ),
    "more blocks than the model has": (
        lambda folder: edit(folder, blocks=3),
        "router_config.json: this router seeds 3 blocks, and there are 2",
    ),
    "blocks to replace": (
        lambda folder: edit(folder, blocks=2, mode="replace"),
        "mode='replace' knows nothing to replace after the input",
    ),
    "layers": (
        lambda folder: edit(folder, layers=0),
        "layers of a router must be at least 1, got 0",
    ),
    "mlp": (lambda folder: edit(folder, mlp=-1), "mlp of a router must not be negative, got -1"),
    "missing tensor": (
        lambda folder: edit(folder, {"out.bias": None}),
        "its tensors do not fit its config: missing out.bias",
    ),
    "left-over tensor": (lambda folder: edit(folder, {"gate": torch.ones(1)}), "left over gate"),
    "shape": (
        lambda folder: edit(folder, {"out.bias": torch.ones(3)}),
        r"out.bias is \[3\], expected \[32\]",
    ),
    "not JSON": (
        lambda folder: (folder / CONFIG).write_text("{"),
        "router_config.json is not valid JSON",
    ),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "has no router.safetensors"),
    "torn weights": (
        lambda folder: (folder / WEIGHTS).write_bytes(b"torn"),
        "not a readable safetensors file",
    ),
    "no folder": (
        lambda folder: folder.rename(folder.parent / "elsewhere"),
        "has no router_config.json: give the folder of a router",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_router_that_does_not_fit_is_refused_in_one_line_that_names_the_thing(
    saved, model, mistake
):
    make, message = MISTAKES[mistake]
    make(saved)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load_router(saved, model)
    assert "\n" not in str(error.value)
