"""Adapters and packed weights of other families, as others write them.

By PEFT beside transformers' own model, and by GPTQ under published names.
"""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llada_plugins.models.gptq import PACKED
from llada_plugins.models.hf_layout import DENSE
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.loading import load_model, save_model
from llada_plugins.models.lora import CONFIG, PREFIX, WEIGHTS, merged_weight
from llada_plugins.models.mixture import StackedLinear
from tests.family_checkpoints import write_checkpoint
from tests.tolerance import forward_error
from training.runs.lora_adapters import AdaptedStack, LoRA

pytestmark = pytest.mark.floats

TOKENS = torch.arange(40).view(2, 20)


def load(folder: Path, **options: str | Path) -> LLaDA:
    return load_model(folder, device="cpu", dtype="float32", **options)


def randomise(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data.normal_(0.0, 0.1, generator=generator)


@pytest.mark.parametrize("targets", [["q_proj", "o_proj", "down_proj"], r".*layers\.1\..*_proj"])
def test_an_adapter_that_peft_wrote_beside_transformers_own_model_loads(tmp_path, targets):
    transformers = pytest.importorskip(
        "transformers", "5.2.0", reason="is_causal=False is honoured since transformers 5.2"
    )
    folder = write_checkpoint("a2d_qwen3", tmp_path / "model")
    raw = json.loads((folder / "config.json").read_text())
    own = {name: value for name, value in raw.items() if name not in ("model_type", "rope_scaling")}
    config = transformers.Qwen3Config(**{**own, "is_causal": False})
    other = transformers.Qwen3ForCausalLM(config).eval()
    state = load_file(folder / "model.safetensors")
    other.load_state_dict(
        {**state, "lm_head.weight": state["model.embed_tokens.weight"]}, strict=True
    )
    lora = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets)
    adapted = peft.get_peft_model(other, lora)
    randomise(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    ours = load(folder, peft=tmp_path / "adapter")
    with torch.no_grad():
        expected = adapted(TOKENS).logits
    off = (ours(TOKENS) - expected).abs().max()
    assert off <= forward_error(ours)
    assert (load(folder)(TOKENS) - expected).abs().max() > 100 * forward_error(ours)


def expert_adapter(folder: Path) -> dict[str, Tensor]:
    """An adapter of one expert's gate and of a router, as PEFT beside the published code has it."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"mlp.experts.4.gate_proj": (16, 64), "mlp.gate": (6, 64)}
    tensors = {}
    for name, (outputs, inputs) in shapes.items():
        place = f"{PREFIX}model.layers.1.{name}"
        tensors[f"{place}.lora_A.weight"] = torch.randn(2, inputs, generator=generator)
        tensors[f"{place}.lora_B.weight"] = torch.randn(outputs, 2, generator=generator)
    folder.mkdir()
    save_file(tensors, folder / WEIGHTS)
    targets = [f"layers.1.{name}" for name in shapes]
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": targets}
    (folder / CONFIG).write_text(json.dumps(said))
    return tensors


def test_an_adapter_of_one_expert_changes_that_experts_weight_alone(tmp_path):
    folder = write_checkpoint("llada_moe", tmp_path / "model")
    tensors = expert_adapter(tmp_path / "adapter")
    save_model(load(folder, peft=tmp_path / "adapter"), tmp_path / "merged")
    before, after = (
        load_file(each / "model.safetensors") for each in (folder, tmp_path / "merged")
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    expected = {"model.layers.1.mlp.experts.4.gate_proj", "model.layers.1.mlp.gate"}
    assert changed == {f"{name}.weight" for name in expected}
    for name in expected:
        down, up = (tensors[f"{PREFIX}{name}.lora_{part}.weight"] for part in "AB")
        assert torch.equal(
            after[f"{name}.weight"], merged_weight(before[f"{name}.weight"], down, up, 1.0)
        )


def test_an_adapter_may_call_modules_as_ours_are_called(tmp_path):
    folder = write_checkpoint("illada", tmp_path / "model")
    theirs, ours = "model.layers.0.self_attn.q_proj", "model.transformer.blocks.0.q_proj"
    tensors = {"A": torch.ones(2, 64), "B": torch.ones(64, 2)}
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["0.q_proj", "q_proj"]}
    found = []
    for number, name in enumerate((theirs, ours)):
        adapter = tmp_path / str(number)
        adapter.mkdir()
        save_file(
            {f"{PREFIX}{name}.lora_{part}.weight": each for part, each in tensors.items()},
            adapter / WEIGHTS,
        )
        (adapter / CONFIG).write_text(json.dumps({**said, "target_modules": [name]}))
        found.append(load(folder, peft=adapter)(TOKENS))
    assert torch.equal(*found) and not torch.equal(found[0], load(folder)(TOKENS))


def test_an_adapted_stack_is_the_stack_of_merged_experts():
    generator = torch.Generator().manual_seed(0)
    stack = StackedLinear(3, 8, 6)
    adapted = AdaptedStack(stack, LoRA(2, 3.0, 0.0, ()))
    rows, ends = torch.randn(10, 8, generator=generator), torch.tensor([4, 4, 10])
    with torch.no_grad():
        assert torch.equal(adapted(rows, ends), stack(rows, ends))  # B begins at zero
        for parameter in adapted.parameters():
            parameter.normal_(0.0, 1.0, generator=generator)
        down, up = adapted.lora_A["default"].weight, adapted.lora_B["default"].weight
        merged = StackedLinear(3, 8, 6)
        merged.weight.copy_(merged_weight(stack.weight, down, up, 1.5))
        exact = torch.cat(
            [
                part.double() @ (each.double() + 1.5 * b.double() @ a.double()).T
                for part, each, a, b in zip(rows.tensor_split([4, 4]), stack.weight, down, up)
            ]
        )
        bound = 2 * float((merged(rows, ends) - exact).abs().max())
        assert float((adapted(rows, ends) - exact).abs().max()) <= 2 * bound


def test_gptq_under_published_names_is_unpacked_and_left_packed(golden, tmp_path):
    """The recorded GPTQ checkpoint, renamed as an A2D of Llama's body would be stored."""
    source = golden / "gptq" / "checkpoint"
    raw = json.loads((source / "config.json").read_text())
    folder = tmp_path / "model"
    folder.mkdir()
    said = {
        "architectures": ["A2DLlamaLMHeadModel"],
        "hidden_size": raw["d_model"],
        "num_attention_heads": raw["n_heads"],
        "num_key_value_heads": raw.get("n_kv_heads") or raw["n_heads"],
        "num_hidden_layers": raw["n_layers"],
        "vocab_size": raw.get("embedding_size") or raw["vocab_size"],
        "intermediate_size": raw["mlp_hidden_size"],
        "max_position_embeddings": raw["max_sequence_length"],
        "rope_theta": raw["rope_theta"],
        "rms_norm_eps": raw["rms_norm_eps"],
        "tie_word_embeddings": raw["weight_tying"],
        "quantization_config": raw["quantization_config"],
    }
    (folder / "config.json").write_text(json.dumps(said))
    tensors = load_file(source / "model.safetensors")
    save_file(
        {DENSE.stored_name(name): each for name, each in tensors.items()},
        folder / "model.safetensors",
    )
    assert any(name.endswith(PACKED[0]) for name in load_file(folder / "model.safetensors"))
    plain, packed = load(folder), load(folder, quantize="packed")
    expected = dict(load(source).named_parameters())
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, expected[name])
    assert (packed(TOKENS) - plain(TOKENS)).abs().max() <= forward_error(plain)


def test_gptq_of_experts_is_refused(tmp_path):
    folder = write_checkpoint("llada_moe", tmp_path / "model")
    said = {"quant_method": "gptq", "bits": 4, "group_size": 8}
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "quantization_config": said}))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.qweight"] = torch.ones(8, 64, dtype=torch.int32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="is GPTQ, which is not implemented for experts"):
        load(folder)
