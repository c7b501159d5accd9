"""Loading and saving: every tensor in its place, every mistake one line that names the
thing, before any weight is read.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llada_plugins.models.folder import read_config, special_tokens, tensor_files
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.loading import load_model, save_model
from llada_plugins.models.special_tokens import SpecialTokens
from llada_plugins.models.weights import load_tensors
from tests.tolerance import measured

pytestmark = pytest.mark.floats

BLOCK = "model.transformer.blocks.0"


@pytest.fixture
def folder(tmp_path, make_model) -> Path:
    """A checkpoint that a test may damage."""
    save_model(make_model(), tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder: Path, **fields) -> None:
    """Set fields of config.json; the value `...` removes one."""
    raw = {**json.loads((folder / "config.json").read_text()), **fields}
    (folder / "config.json").write_text(
        json.dumps({name: value for name, value in raw.items() if value is not ...})
    )


def edit_tensors(folder: Path, **tensors: torch.Tensor | None) -> None:
    state = {**load_file(folder / "model.safetensors"), **tensors}
    save_file(
        {name: tensor for name, tensor in state.items() if tensor is not None},
        folder / "model.safetensors",
    )


def shard(folder: Path, num_shards: int = 3) -> None:
    """The same checkpoint in shards with an index, as published."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {
        name: f"model-{number % num_shards + 1:05}-of-{num_shards:05}.safetensors"
        for number, name in enumerate(state)
    }
    for path in set(weight_map.values()):
        save_file({name: state[name] for name in state if weight_map[name] == path}, folder / path)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )


def error_of(folder: Path | str | None, **options) -> str:
    """The message that loading raises: one line."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_model(folder, **{"device": "cpu", **options})
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "fields",
    [
        {},
        dict(n_kv_heads=2),
        dict(weight_tying=True),
        dict(include_bias=True),
        dict(include_qkv_bias=True),
        dict(embedding_size=48),
    ],
    ids=str,
)
def test_save_then_load_is_bit_equal(tmp_path, make_model, fields):
    model = make_model(**fields)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path, device="cpu", dtype="float32")
    assert loaded.config == model.config
    state, expected = loaded.state_dict(), model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


def test_a_loaded_model_is_ready_for_inference(folder):
    model = load_model(folder, device="cpu")
    assert not model.training
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in model.parameters())
    assert model.dtype == torch.float32 and model.device == torch.device("cpu")
    assert load_model(folder, device="cpu", dtype="bfloat16").dtype == torch.bfloat16


def test_saving_twice_writes_the_same_bytes(tmp_path, make_model):
    for name in ("first", "second"):
        save_model(make_model(), tmp_path / name, {"note": 1})
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_shards_with_an_index_equal_the_single_file(folder):
    expected = load_model(folder, device="cpu").state_dict()
    shard(folder)
    state = load_model(folder, device="cpu").state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


TENSOR_MISTAKES = {
    "missing": ({f"{BLOCK}.q_proj.weight": None}, rf"missing {BLOCK}\.q_proj\.weight"),
    "left_over": (
        {f"{BLOCK}.lora_A.weight": torch.zeros(2, 2)},
        rf"left over {BLOCK}\.lora_A\.weight",
    ),
    "wrong_shape": (
        {f"{BLOCK}.up_proj.weight": torch.zeros(47, 32)},
        rf"{BLOCK}\.up_proj\.weight is \[47, 32\], expected \[48, 32\]",
    ),
    "other_names": (
        {f"{BLOCK}.q_proj.weight": None, f"{BLOCK}.query.weight": torch.zeros(32, 32)},
        r"missing .*q_proj.*left over .*query",
    ),
}


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("mistake", TENSOR_MISTAKES)
def test_a_tensor_that_does_not_fit_is_named_and_none_is_read(folder, mistake, sharded):
    tensors, message = TENSOR_MISTAKES[mistake]
    edit_tensors(folder, **tensors)
    if sharded:
        shard(folder)
    with torch.device("meta"):
        model = LLaDA(read_config(folder))
    with pytest.raises(ValueError, match=message) as caught:
        load_tensors(
            model,
            tensor_files(folder),
            device=torch.device("cpu"),
            dtype=torch.float32,
            source=folder,
        )
    assert str(folder) in str(caught.value)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_tied_config_refuses_a_stored_head(folder):
    edit_config(folder, weight_tying=True)
    assert "ties the head to the embedding, but model.transformer.ff_out" in error_of(folder)


def test_many_wrong_tensors_are_counted_not_listed(folder):
    edit_config(folder, n_layers=4)
    assert re.search(r"missing .* and 10 more", error_of(folder))


def test_a_shard_without_the_tensor_the_index_promises_is_named(folder):
    shard(folder)
    index = folder / "model.safetensors.index.json"
    raw = json.loads(index.read_text())
    names = sorted(set(raw["weight_map"].values()))
    raw["weight_map"]["model.transformer.ln_f.weight"] = next(
        name for name in names if name != raw["weight_map"]["model.transformer.ln_f.weight"]
    )
    index.write_text(json.dumps(raw))
    assert re.search(
        r"missing model\.transformer\.ln_f\.weight \(the index places it in model-0000\d-of-00003",
        error_of(folder),
    )


CONFIG_MISTAKES = {
    # LLaDA-MoE says model_type llada too
    "foreign_architecture": (
        dict(model_type="llada", architectures=["LLaDAMoEModelLM"]),
        r"LLaDAMoEModelLM.*do not belong together",
    ),
    "no_architecture": (
        dict(architectures=...),
        r"architectures is \[\], expected one of \[.*'LLaDAModelLM'.*\]",
    ),
    "missing_field": (dict(rope_theta=...), r"config\.json: needs rope_theta"),
    "null_field": (dict(mlp_hidden_size=None), r"config\.json: needs mlp_hidden_size"),
    # absent means no rotary positions in the published code
    "missing_switch": (dict(rope=...), r"config\.json: needs rope"),
    "block_type": (
        dict(block_type="sequential"),
        r"block_type is 'sequential', but only 'llama' is implemented",
    ),
    "activation": (dict(activation_type="swiglu"), r"activation_type is 'swiglu'"),
    "norm": (dict(layer_norm_type="default"), r"layer_norm_type is 'default'"),
    "alibi": (dict(alibi=True), r"alibi is True"),
    "scaled_logits": (dict(scale_logits=True), r"scale_logits is True"),
    "embedding_norm": (dict(input_emb_norm=True), r"input_emb_norm is True"),
    "query_norm": (dict(attention_layer_norm=True), r"attention_layer_norm is True"),
    "multi_query": (dict(multi_query_attention=True), r"multi_query_attention is True"),
    "block_groups": (dict(block_group_size=4), r"block_group_size is 4"),
    "indivisible": (
        dict(n_heads=5),
        r"d_model \(32\), n_heads \(5\) and n_kv_heads \(5\) do not divide",
    ),
    "indivisible_kv": (dict(n_kv_heads=3), r"n_heads \(4\) and n_kv_heads \(3\) do not divide"),
    "mask_outside": (dict(mask_token_id=40), r"mask token's id 40 is outside the vocabulary of 40"),
}


@pytest.mark.parametrize("mistake", CONFIG_MISTAKES)
def test_a_config_that_is_not_implemented_is_named(folder, mistake):
    fields, message = CONFIG_MISTAKES[mistake]
    edit_config(folder, **fields)
    shard(folder)
    for path in folder.glob("*.safetensors"):
        path.write_bytes(b"never opened")
    assert re.search(message, error_of(folder))


def test_wrong_device_and_dtype_are_told_before_the_folder_is_looked_at(tmp_path):
    assert "dtype must be auto or one of float32, bfloat16, float16, got 'int8'" in error_of(
        tmp_path / "none", dtype="int8"
    )
    for device in ("gpu", "mps", "meta"):
        assert f"device must be auto, cpu, cuda or cuda:N, got {device!r}" in error_of(
            tmp_path / "none", device=device
        )
    absent = f"cuda:{torch.cuda.device_count()}"
    assert re.search(
        rf"device='{absent}', but torch sees \d+ GPUs; use device=cpu or auto",
        error_of(tmp_path / "none", device=absent),
    )


def test_files_that_cannot_be_read_are_named(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    assert "model.safetensors is not a readable safetensors file" in error_of(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "only safetensors are read, never pickles" in error_of(folder)
    for text, message in (
        ("{", "config.json is not valid JSON"),
        ("[1]", "config.json must hold a JSON object, found list"),
    ):
        (folder / "config.json").write_text(text)
        assert message in error_of(folder)
    (folder / "config.json").unlink()
    assert "has no config.json: not a checkpoint folder" in error_of(folder)


def test_a_missing_shard_is_named(folder):
    shard(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert (
        "the index names model-00002-of-00003.safetensors, not in the folder: the download is "
        "incomplete" in error_of(folder)
    )


def test_a_folder_that_does_not_exist_is_not_sought_on_the_hub(tmp_path):
    for name in (tmp_path / "none", "./none/here", "a/b/c", "plain"):
        assert re.search(
            r"pretrained='.*': no such folder; give a checkpoint folder, a hub id", error_of(name)
        )
    (tmp_path / "file").write_text("")
    assert "no such folder" in error_of(tmp_path / "file")


def test_a_hub_id_offline_says_to_download_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    message = error_of("nobody/no-such-model")
    assert "'nobody/no-such-model'" in message
    assert "download it where there is a network and pass the folder" in message


def test_the_published_config_and_tensor_names_are_this_modules(published):
    for name in ("LLaDA-8B-Base", "LLaDA-8B-Instruct", "LLaDA-1.5"):
        config = read_config(published / name)
        with torch.device("meta"):
            state = LLaDA(config).state_dict()
        index = json.loads((published / name / "model.safetensors.index.json").read_text())
        assert state.keys() == index["weight_map"].keys() and len(state) == 291
        # stored in bf16
        assert (
            sum(tensor.numel() for tensor in state.values()) * 2 == index["metadata"]["total_size"]
        )
        assert state["model.transformer.blocks.31.ff_out.weight"].shape == (4096, 12288)
        assert state["model.transformer.ff_out.weight"].shape == (126464, 4096)


def test_special_tokens_of_the_published_files_need_no_literal(published):
    for name, has_eot in (("LLaDA-8B-Base", False), ("LLaDA-8B-Instruct", True)):
        config = read_config(published / name)
        raw = json.loads((published / name / "tokenizer_config.json").read_text())[
            "added_tokens_decoder"
        ]
        named = {token["content"]: int(number) for number, token in raw.items()}
        special = special_tokens(published / name, config)
        assert special == SpecialTokens(
            named["<|mdm_mask|>"], named["<|endoftext|>"], named["<|eot_id|>"] if has_eot else None
        )


def test_special_tokens_come_from_argument_then_config_then_tokenizer(tmp_path, make_model):
    from training.data.byte_tokenizer import EOS, MASK, byte_tokenizer

    ids = byte_tokenizer(tmp_path)
    size = max(ids.values()) + 1
    unnamed, named = (
        make_model(vocab_size=size, eos_token_id=ids[EOS], mask_token_id=mask).config
        for mask in (None, 5)
    )
    assert special_tokens(tmp_path, unnamed) == SpecialTokens(
        ids[MASK], ids[EOS], ids["<|eot_id|>"]
    )
    assert special_tokens(tmp_path, named).mask == 5
    assert special_tokens(tmp_path, named, 0).mask == 0
    assert special_tokens(tmp_path / "elsewhere", unnamed) is None
    (tmp_path / "tokenizer.json").unlink()  # tokenizer_config.json names them as well
    assert special_tokens(tmp_path, unnamed) == SpecialTokens(
        ids[MASK], ids[EOS], ids["<|eot_id|>"]
    )
    with pytest.raises(
        ValueError, match=f"mask token's id {size} is outside the vocabulary of {size}"
    ):
        special_tokens(tmp_path, unnamed, size)


def test_lora_adapts_the_block_projections_and_not_the_head(folder, tmp_path):
    peft = pytest.importorskip("peft")
    model, tokens = load_model(folder, device="cpu"), torch.arange(8)[None]
    plain = model(tokens)
    # a list with "ff_out" would adapt the head as well
    target = r".*\.blocks\.\d+\.(q_proj|v_proj|ff_out)"
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=target, init_lora_weights=False)
    )
    names = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(names) == 2 * 3 * 2 and all(".blocks." in name and "lora_" in name for name in names)
    changed, bound = adapted(tokens), measured(lambda of: of(tokens), adapted)
    assert (changed - plain).abs().max() > 100 * bound
    adapted.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(load_model(folder, device="cpu"), tmp_path / "adapter")
    assert torch.equal(again(tokens), changed)
    # merging rounds every weight once more
    merged_bound = measured(lambda of: copy.deepcopy(of).merge_and_unload()(tokens), adapted)
    merged = again.merge_and_unload()
    torch.testing.assert_close(merged(tokens), changed, atol=bound + merged_bound, rtol=0)


def test_accelerates_name_of_a_processs_cpu_is_the_cpu(tiny_checkpoint):
    assert load_model(tiny_checkpoint, device="cpu:0").device == torch.device("cpu")
