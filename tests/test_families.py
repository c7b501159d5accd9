"""The FAMILIES table: each row is recognised, and a row is all that a new family needs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llada_plugins.engine.engine import Engine, Request
from llada_plugins.files.json_files import read_json
from llada_plugins.models.families import FAMILIES, Family, recognise
from llada_plugins.models.folder import read_config
from llada_plugins.models.layout import Layout
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.llada_config import LLaDAConfig
from llada_plugins.models.loading import load_model, save_model
from training import sft

pytestmark = pytest.mark.floats

RECORDED = {  # family -> folders of tests/golden
    "llada": ("llada", "gptq"),
    "remedi": ("remedi",),
    "llada_moe": ("families/llada_moe",),
    "illada": ("families/illada",),
    "dream": ("families/dream",),
    "a2d_qwen3": ("families/a2d_qwen3",),
    "sdar": ("families/sdar",),
    "llada2": ("families/llada2",),
    "fast_dllm_v2": ("families/fast_dllm_v2",),
    # made of others', see test_hf_layout.py
    "llada_moe_fused": (),
    "a2d_qwen2": (),
    "a2d_llama": (),
    "sdar_moe": (),
    "llada2_stacked": (),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_is_recognised_by_its_recorded_checkpoint(golden, name):
    for recorded in RECORDED[name]:
        assert read_config(golden / recorded / "checkpoint").family == name


# --- a throw-away family: other tensor names, other keys in config.json, a class of its own ------

KEYS = {  # of its config.json -> ours
    "hidden_size": "d_model",
    "num_attention_heads": "n_heads",
    "num_hidden_layers": "n_layers",
    "vocab_size": "vocab_size",
    "intermediate_size": "mlp_hidden_size",
    "max_position_embeddings": "max_sequence_length",
    "rope_theta": "rope_theta",
    "rms_norm_eps": "rms_norm_eps",
    "mask_token_id": "mask_token_id",
    "eos_token_id": "eos_token_id",
}
LAYER, BLOCK = "model.layers.N.", "model.transformer.blocks.N."
NAMES = {
    "model.embed_tokens": "model.transformer.wte",
    "model.norm": "model.transformer.ln_f",
    "lm_head": "model.transformer.ff_out",
    LAYER + "input_layernorm": BLOCK + "attn_norm",
    **{f"{LAYER}self_attn.{each}_proj": f"{BLOCK}{each}_proj" for each in "qkv"},
    LAYER + "self_attn.o_proj": BLOCK + "attn_out",
    LAYER + "post_attention_layernorm": BLOCK + "ff_norm",
    LAYER + "mlp.gate_proj": BLOCK + "ff_proj",
    LAYER + "mlp.up_proj": BLOCK + "up_proj",
    LAYER + "mlp.down_proj": BLOCK + "ff_out",
}


class Toy(LLaDA):
    """LLaDA's network under another name."""


def read_toy(raw: dict[str, Any], source: str) -> LLaDAConfig:
    if missing := sorted(KEYS.keys() - raw.keys()):
        raise ValueError(f"{source}: needs {', '.join(missing)}")
    switches = dict.fromkeys(
        ("weight_tying", "include_bias", "include_qkv_bias", "rope_full_precision"), False
    )
    return LLaDAConfig(**{ours: raw[key] for key, ours in KEYS.items()}, **switches)


def write_toy(config: LLaDAConfig) -> dict[str, Any]:
    fields = {key: getattr(config, ours) for key, ours in KEYS.items()}
    return {"architectures": ["ToyForDiffusion"], "model_type": "toy", **fields}


ROW = Family(
    Toy,
    frozenset({"ToyForDiffusion"}),
    "model.layers.",
    read_config=read_toy,
    write_config=write_toy,
    unknown_fields=lambda raw: [],
    layout=Layout(NAMES),
    mask_names=("<|toy_mask|>",),
)


@pytest.fixture
def toy(monkeypatch, tmp_path, tiny_checkpoint) -> Path:
    """A checkpoint in the throw-away family's layout, made without this package's save."""
    monkeypatch.setitem(FAMILIES, "toy", ROW)
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "toy")
    stored = {ours: name for name, ours in NAMES.items()}
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        parts = name.removesuffix(".weight").split(".")
        number = next((part for part in parts if part.isdigit()), "")
        form = ".".join("N" if part.isdigit() else part for part in parts)
        tensors[stored[form].replace(".N.", f".{number}.") + ".weight"] = tensor
    save_file(tensors, folder / "model.safetensors")
    ours = json.loads((folder / "config.json").read_text())
    said = {key: ours[name] for key, name in KEYS.items()}
    said |= {"architectures": ["ToyForDiffusion"], "model_type": "toy", "unasked": "kept"}
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def same_logits(one: LLaDA, other: LLaDA) -> bool:
    ids = torch.arange(20).view(2, 10)
    return torch.equal(one(ids), other(ids))


def test_a_new_family_loads_by_its_row_with_the_same_logits(toy, tiny_checkpoint):
    config = read_config(tiny_checkpoint)
    plain = LLaDA(LLaDAConfig(**{**vars(config), "rope_full_precision": False}))
    plain.load_state_dict(load_file(tiny_checkpoint / "model.safetensors"))
    plain.requires_grad_(False)  # with gradients attention takes other sums
    loaded = load_model(toy, device="cpu", dtype="float32")
    assert type(loaded) is Toy and same_logits(loaded, plain)


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda tensors: tensors.pop("lm_head.weight"), r"missing lm_head\.weight"),
        (
            lambda tensors: tensors.update({"model.layers.0.extra.weight": torch.ones(1)}),
            r"left over model\.layers\.0\.extra\.weight",
        ),
        (
            lambda tensors: tensors.update({"model.norm.weight": torch.ones(1)}),
            r"is \[1\], expected \[32\]",
        ),
    ],
    ids=("missing", "left over", "other shape"),
)
def test_every_tensor_of_a_new_family_is_accounted_for_by_its_stored_name(toy, change, problem):
    tensors = load_file(toy / "model.safetensors")
    change(tensors)
    save_file(tensors, toy / "model.safetensors")
    with pytest.raises(ValueError, match=problem) as error:
        load_model(toy, device="cpu")
    assert "\n" not in str(error.value)


def test_a_tensor_under_our_name_has_no_place_in_another_layout(toy):
    tensors = load_file(toy / "model.safetensors")
    tensors["model.transformer.ln_f.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, toy / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing model\.norm\.weight"):
        load_model(toy, device="cpu")


def test_a_new_family_answers_through_an_engine(toy):
    engine = Engine(pretrained=str(toy), device="cpu", gen_length=8, steps=4)
    ((_, answer),) = engine.generate([Request("a", engine.sampler)])
    mask = engine.tokenizer.decode([engine.special.mask])
    assert answer.num_forwards == 4 and mask not in answer.text


def test_a_new_family_is_saved_in_its_own_layout(toy, tmp_path):
    loaded = load_model(toy, device="cpu", dtype="float32")
    save_model(loaded, tmp_path / "saved")
    assert read_json(tmp_path / "saved" / "config.json") == read_json(toy / "config.json")
    before, after = (load_file(each / "model.safetensors") for each in (toy, tmp_path / "saved"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert same_logits(loaded, load_model(tmp_path / "saved", device="cpu", dtype="float32"))


def test_a_new_family_trains_and_stays_what_it_is(toy, tmp_path, sudokus):
    out = tmp_path / "out"
    flags = "--max_steps 2 --per_device_train_batch_size 2 --save_strategy no --use_cpu"
    given = ["--model", str(toy), "--data", str(sudokus), "--output_dir", str(out)]
    sft.main([*given, *flags.split(), "--learning_rate", "1e-2", "--warmup_steps", "0"])
    trained = load_model(out, device="cpu", dtype="float32")
    assert type(trained) is Toy
    assert read_json(out / "config.json")["unasked"] == "kept"
    before, after = (load_file(each / "model.safetensors") for each in (toy, out))
    assert before.keys() == after.keys()
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])


@pytest.mark.parametrize("says", ["LLaDAModelLM", "ToyForDiffusion"])
def test_a_config_of_one_family_with_tensors_of_another_is_refused(toy, tiny_checkpoint, says):
    tensors = toy if says == "LLaDAModelLM" else tiny_checkpoint
    config = tiny_checkpoint if says == "LLaDAModelLM" else toy
    folder = shutil.copytree(config, toy.parent / "mixed")
    shutil.copyfile(tensors / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"architectures is .*{says}.* do not belong together$"):
        load_model(folder, device="cpu")


def test_an_architecture_that_no_row_has_is_refused_by_name():
    with pytest.raises(ValueError, match="'Other'.*expected one of .*'LLaDAModelLM'.*no family"):
        recognise(["Other"], ["model.layers.0.x"], Path("config.json"))
