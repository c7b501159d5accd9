"""What llada_plugins.hf registers are our networks, which transformers and PEFT use as theirs."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    GenerationConfig,
    Trainer,
    TrainingArguments,
    set_seed,
)

import llada_plugins.hf  # noqa: F401  # registers
from llada_plugins import SamplerConfig, SpecialTokens, generate, load_model
from llada_plugins.files.tensors import save_tensors
from llada_plugins.huggingface.configs import CONFIGS
from llada_plugins.huggingface.models import CheckpointModel
from llada_plugins.models.families import FAMILIES
from llada_plugins.models.layer import Layer
from llada_plugins.tasks import sudoku
from tests.tolerance import largest, measured, rounding

pytestmark = pytest.mark.floats
RECORDED = ("llada_moe", "illada", "dream", "a2d_qwen3", "sdar", "llada2", "fast_dllm_v2")
CHECKPOINTS = ("tiny_checkpoint", "bi_tower", *RECORDED)
AUTO_CLASSES = (AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM)


@pytest.fixture
def checkpoint(request, golden) -> Path:
    """The folder of a checkpoint of CHECKPOINTS, named by the test."""
    if request.param in RECORDED:
        return golden / "families" / request.param / "checkpoint"
    return request.getfixturevalue(request.param)


every_family = pytest.mark.parametrize("checkpoint", CHECKPOINTS, indirect=True)
one_layout_each = pytest.mark.parametrize(
    "checkpoint",
    ("tiny_checkpoint", "llada_moe", pytest.param("llada2", marks=pytest.mark.slow)),
    indirect=True,
)


def some_ids(rows: int = 2, length: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.randint(30, (rows, length), generator=torch.Generator().manual_seed(seed))


def load(folder: Path, **arguments) -> CheckpointModel:
    return AutoModel.from_pretrained(folder, dtype=torch.float32, **arguments)


def config_json(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


# --- the same weights, the same numbers ---------------------------------------------------------


@every_family
@torch.no_grad()
def test_an_auto_class_loads_every_family_with_the_logits_of_load_model(checkpoint):
    ids = some_ids()
    network = load_model(checkpoint, device="cpu", dtype="float32")
    for auto in AUTO_CLASSES:
        model = auto.from_pretrained(checkpoint, dtype=torch.float32)
        assert isinstance(model, CheckpointModel) and not model.training
        assert torch.equal(model(ids).logits, network(ids))
    output = model(ids, output_hidden_states=True)
    states = network.hidden_states(ids, every_layer=True)
    assert len(states) == network.config.n_layers + 1
    assert all(map(torch.equal, output.hidden_states, states))


@every_family
@torch.no_grad()
def test_a_saved_model_says_and_holds_what_its_checkpoint_does(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "base")
    said = {"auto_map": {"AutoModel": "modeling.Model"}, "custom": {"kept": [1]}}
    said = {**config_json(checkpoint), **said}
    (tmp_path / "base" / "config.json").write_text(json.dumps(said))
    (tmp_path / "base" / "modeling.py").write_text("raise SystemExit")
    load(tmp_path / "base").save_pretrained(tmp_path / "saved")
    expected = {name: value for name, value in said.items() if name not in ("dtype", "torch_dtype")}
    found = config_json(tmp_path / "saved")
    assert {name: found[name] for name in expected} == expected
    assert (tmp_path / "saved" / "modeling.py").read_text() == "raise SystemExit"
    network = load_model(tmp_path / "saved", device="cpu", dtype="float32")
    reference = load_model(checkpoint, device="cpu", dtype="float32").state_dict()
    assert network.state_dict().keys() == reference.keys()
    assert all(torch.equal(value, reference[name]) for name, value in network.state_dict().items())


def test_every_family_has_a_registered_class():
    types = {each for family in FAMILIES.values() for each in family.model_types}
    assert types == CONFIGS.keys()
    for name, config in CONFIGS.items():
        assert AutoConfig.for_model(name).__class__ is config


@pytest.mark.slow
def test_without_the_import_nothing_of_transformers_changes(tiny_checkpoint):
    code = f"""
import llada_plugins, transformers
llada_plugins.load_model
try:
    transformers.AutoConfig.from_pretrained({str(tiny_checkpoint)!r})
except ValueError as error:
    assert "llada" in str(error), error
else:
    raise SystemExit("registered")
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@torch.no_grad()
def test_copies_and_pickles_compute_with_their_own_weights(tiny_checkpoint):
    model, ids = load(tiny_checkpoint), some_ids()
    before = model(ids).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.get_output_embeddings().weight.zero_()
        assert not other(ids).logits.any()
    assert torch.equal(model(ids).logits, before)


def test_a_replica_of_the_modules_is_what_computes(tiny_checkpoint):
    """As torch's DataParallel makes it: a shallow copy with other modules."""
    model, ids = load(tiny_checkpoint), some_ids()
    replica = copy.copy(model)
    replica._modules = {"model": copy.deepcopy(model.model)}
    replica.get_output_embeddings().weight.data.zero_()
    assert not replica(ids).logits.any() and model(ids).logits.any()


def test_the_example_of_the_page_solves_its_sudoku(capsys, monkeypatch):
    root = Path(__file__).parents[1]
    monkeypatch.chdir(root)
    page = (root / "docs" / "transformers.md").read_text(encoding="utf-8")
    exec(page.split("```python\n")[1].split("```")[0], {})
    puzzle, solution = capsys.readouterr().out.strip().split("=")
    assert sudoku.is_valid(puzzle, solution)


# --- forward ----------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", ("tiny_checkpoint", "dream", "fast_dllm_v2"), indirect=True)
@torch.no_grad()
def test_the_loss_is_of_each_label_at_its_own_place(checkpoint):
    model, ids = load(checkpoint), some_ids()
    labels = torch.where(
        torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.5, ids, -100
    )
    logits = model(ids).logits
    shift = FAMILIES[model.network.config.family].shift
    terms = [
        -logits[row, max(column - shift, 0)].log_softmax(-1)[labels[row, column]]
        for row, column in (labels >= 0).nonzero().tolist()
    ]
    # sums over the vocabulary and over the terms, on both sides
    atol = rounding(2 * (logits.shape[-1] + len(terms)), terms, logits)
    mean = model(ids, labels=labels).loss
    torch.testing.assert_close(mean, torch.stack(terms).mean(), rtol=0, atol=atol)
    shared = model(ids, labels=labels, num_items_in_batch=2 * len(terms)).loss
    torch.testing.assert_close(2 * shared, mean, rtol=0, atol=atol)


@torch.no_grad()
def test_return_dict_and_output_hidden_states_follow_call_and_config(tiny_checkpoint):
    model, ids = load(tiny_checkpoint), some_ids()
    loss, logits, states = model(ids, labels=ids, output_hidden_states=True, return_dict=False)
    output = model(ids, labels=ids)
    assert torch.equal(loss, output.loss) and torch.equal(logits, output.logits)
    assert output.hidden_states is None and len(states) == 3
    model.config.output_hidden_states = True
    assert len(model(ids).hidden_states) == 3


@torch.no_grad()
def test_rows_packed_into_one_by_mask_and_positions_are_as_apart(tiny_checkpoint):
    model = load(tiny_checkpoint)
    first, second = some_ids(1, 9), some_ids(1, 7, seed=1)
    packed = torch.cat([first, second], 1)
    document = torch.tensor([[0] * 9 + [1] * 7])
    visible = document[:, :, None] == document[:, None]  # (1, L, L)
    positions = torch.cat([torch.arange(9), torch.arange(7)])[None]

    def apart(model: CheckpointModel) -> torch.Tensor:
        return torch.cat([model(first).logits, model(second).logits], 1)

    for mask in (visible, visible[:, None]):
        found = model(packed, attention_mask=mask, position_ids=positions).logits
        torch.testing.assert_close(found, apart(model), rtol=0, atol=measured(apart, model))
    plain = model(packed).logits
    in_order = torch.arange(16)[None]
    assert torch.equal(model(packed, position_ids=in_order).logits, plain)
    assert largest(model(packed, position_ids=2 * in_order).logits - plain) > measured(apart, model)


# --- generate ---------------------------------------------------------------------------------


@every_family
def test_generate_gives_the_answers_of_generate(checkpoint):
    model, ids = load(checkpoint), some_ids()
    special = model.network.special_tokens or SpecialTokens(mask=31)
    options = dict(gen_length=8, steps=4)
    expected = generate(model.network, ids.tolist(), SamplerConfig(**options), special=special)
    found = model.generate(ids, special=special, **options)
    assert found.tolist() == [[*row, *each.answer] for row, each in zip(ids.tolist(), expected)]


def test_generation_config_and_sampler_config_say_the_same(tiny_checkpoint):
    model, ids = load(tiny_checkpoint), some_ids()
    config = SamplerConfig(gen_length=8, temperature=0.7, top_k=5, steps=4)
    expected = generate(model.network, ids.tolist(), config)
    rows = [[*row, *each.answer] for row, each in zip(ids.tolist(), expected)]
    asked = GenerationConfig(max_new_tokens=8, do_sample=True, temperature=0.7, top_k=5)
    assert model.generate(ids, config).tolist() == rows
    assert model.generate(ids, asked, steps=4).tolist() == rows
    by_name = dict(do_sample=True, temperature=0.7, top_k=5, steps=4)
    assert model.generate(ids, max_length=17, **by_name).tolist() == rows
    record = model.generate(ids, asked, steps=4, return_dict_in_generate=True)
    assert record.sequences.tolist() == rows
    assert record.num_forwards.tolist() == [each.num_forwards for each in expected]


def test_do_sample_false_is_greedy_whatever_else_is_given(tiny_checkpoint):
    model, ids = load(tiny_checkpoint), some_ids()
    greedy = model.generate(ids, max_new_tokens=8, steps=4)
    sampled = model.generate(ids, max_new_tokens=8, steps=4, temperature=5.0)
    assert not torch.equal(sampled, greedy)  # an option of ours, which needs no do_sample
    for more in (dict(temperature=5.0), dict(temperature=5.0, top_k=3), dict(top_p=0.9)):
        asked = model.generate(ids, do_sample=False, max_new_tokens=8, steps=4, **more)
        assert torch.equal(asked, greedy)


def test_padding_of_prompts_changes_no_answer(tiny_checkpoint):
    model, ids = load(tiny_checkpoint), some_ids(1)
    options = dict(max_new_tokens=8, steps=4)
    alone = model.generate(ids, **options)[:, 9:]
    other = some_ids(1, 12, seed=1)
    padded = torch.cat([torch.cat([ids.new_zeros(1, 3), ids], 1), other])
    mask = torch.cat([torch.tensor([[0] * 3 + [1] * 9]), torch.ones_like(other)])
    found = model.generate(padded, attention_mask=mask, **options)
    assert torch.equal(found[:1, 12:], alone) and torch.equal(found[:, :12], padded)


# --- training -----------------------------------------------------------------------------------


def examples() -> list[dict[str, torch.Tensor]]:
    rows = some_ids(8)
    masked = rows.clone()
    masked[:, ::2] = 31
    labels = torch.where(masked == 31, rows, -100)
    return [{"input_ids": row, "labels": label} for row, label in zip(masked, labels)]


def train(folder: Path, out: Path, resume: bool = False, **options) -> CheckpointModel:
    set_seed(0)
    model = load(folder)
    arguments = TrainingArguments(
        out,
        max_steps=2,
        per_device_train_batch_size=4,
        save_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        learning_rate=1e-2,
        **options,
    )
    trainer = Trainer(model, arguments, train_dataset=examples())
    trainer.train(resume_from_checkpoint=str(out / "checkpoint-1") if resume else None)
    return model


@one_layout_each
def test_a_trainer_trains_saves_and_resumes(checkpoint, tmp_path):
    start = load(checkpoint).state_dict()
    trained = train(checkpoint, tmp_path).state_dict()
    assert all(value.ne(start[name]).any() for name, value in trained.items() if value.dim() > 1)
    saved = load_model(tmp_path / "checkpoint-2", device="cpu", dtype="float32").state_dict()
    assert all(torch.equal(saved[name], value) for name, value in trained.items())
    shutil.rmtree(tmp_path / "checkpoint-2")
    resumed = train(checkpoint, tmp_path, resume=True).state_dict()
    assert all(torch.equal(resumed[name], value) for name, value in trained.items())


def test_gradient_checkpointing_changes_no_weight(tiny_checkpoint, tmp_path):
    plain = train(tiny_checkpoint, tmp_path / "plain").state_dict()
    model = train(tiny_checkpoint, tmp_path / "again", gradient_checkpointing=True)
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    assert all(layer.recompute for layer in layers) and model.is_gradient_checkpointing
    assert all(torch.equal(plain[name], value) for name, value in model.state_dict().items())
    model.gradient_checkpointing_disable()
    assert not any(layer.recompute for layer in layers)


@pytest.mark.parametrize("task", (None, TaskType.CAUSAL_LM))
def test_an_adapter_of_peft_trains_and_is_read_by_load_model(tiny_checkpoint, tmp_path, task):
    model, ids = load(tiny_checkpoint), some_ids()
    set_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "ff_out"], task_type=task)
    adapted = get_peft_model(model, config)
    optimizer = torch.optim.SGD([each for each in adapted.parameters() if each.requires_grad], 1.0)
    for _ in range(2):
        adapted(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    adapted.save_pretrained(tmp_path)
    merged = load_model(tiny_checkpoint, device="cpu", peft=tmp_path)
    with torch.no_grad():
        logits, base = adapted(input_ids=ids).logits, load_model(tiny_checkpoint, device="cpu")
        atol = measured(lambda network: network(ids), merged)
        atol += measured(lambda model: model(input_ids=ids).logits, adapted)
        torch.testing.assert_close(logits, merged(ids), rtol=0, atol=atol)
        assert largest(logits - base(ids)) > atol
    answers = adapted.generate(input_ids=ids, max_new_tokens=4)
    assert answers.tolist() == merged_answers(merged, ids)


@torch.no_grad()
def test_the_folder_of_an_adapter_loads_its_base_with_it(tiny_checkpoint, tmp_path):
    ids = some_ids()
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = get_peft_model(load(tiny_checkpoint), config)
    adapted.save_pretrained(tmp_path / "first")
    logits = adapted(input_ids=ids).logits
    assert not torch.equal(logits, load(tiny_checkpoint)(ids).logits)
    both = load(tmp_path / "first")
    assert torch.equal(both(ids).logits, logits)
    both.save_pretrained(tmp_path / "second")
    assert not (tmp_path / "second" / "model.safetensors").exists()
    again = load(tiny_checkpoint)
    again.load_adapter(tmp_path / "second")
    assert torch.equal(again(ids).logits, logits)


def merged_answers(network, ids: torch.Tensor) -> list[list[int]]:
    found = generate(network, ids.tolist(), SamplerConfig(gen_length=4))
    return [[*row, *each.answer] for row, each in zip(ids.tolist(), found)]


@pytest.mark.parametrize("method, package", (("int8", "torchao"), ("nf4", "bitsandbytes")))
@torch.no_grad()
def test_quantised_weights_are_those_of_load_model(tiny_checkpoint, tmp_path, method, package):
    pytest.importorskip(package)
    model, ids = load(tiny_checkpoint, quantize=method), some_ids()
    network = load_model(tiny_checkpoint, device="cpu", dtype="float32", quantize=method)
    assert torch.equal(model(ids).logits, network(ids))
    assert not torch.equal(model(ids).logits, load(tiny_checkpoint)(ids).logits)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.generate(ids, max_new_tokens=4).tolist() == merged_answers(network, ids)
    with pytest.raises(ValueError, match=f"a model in {method} .* is not saved"):
        model.save_pretrained(tmp_path)


@pytest.mark.filterwarnings("ignore:TorchaoLoraLinear")  # adapters are merged by load_model
@pytest.mark.parametrize("task", (None, TaskType.CAUSAL_LM))
def test_an_adapter_of_peft_trains_on_weights_of_8_bits(tiny_checkpoint, tmp_path, task):
    pytest.importorskip("torchao")
    model, ids = load(tiny_checkpoint, quantize="int8"), some_ids()
    set_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type=task))
    optimizer = torch.optim.SGD([each for each in adapted.parameters() if each.requires_grad], 1.0)
    losses = []
    for _ in range(3):
        loss = adapted(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert losses[2] < losses[0]
    adapted.save_pretrained(tmp_path)
    assert load_model(tiny_checkpoint, device="cpu", peft=tmp_path)


# --- placing, resizing, saving ------------------------------------------------------------------


@torch.no_grad()
def test_a_model_that_is_spread_gives_the_logits_and_answers_of_one_in_memory(
    tiny_checkpoint, tmp_path
):
    ids, blocks = some_ids(), "model.transformer.blocks"
    places = {f"{blocks}.0": "disk", f"{blocks}.1": "cpu"}
    places |= {f"model.transformer.{name}": "cpu" for name in ("wte", "ln_f", "ff_out")}
    spread = load(tiny_checkpoint, device_map=places, offload_folder=str(tmp_path))
    plain = load(tiny_checkpoint, device_map="cpu")
    assert spread.hf_device_map == places and not hasattr(plain, "hf_device_map")
    assert next(spread.network.blocks[0].parameters()).is_meta
    assert torch.equal(spread(ids).logits, plain(ids).logits)
    assert torch.equal(
        spread.generate(ids, max_new_tokens=4), plain.generate(ids, max_new_tokens=4)
    )
    assert torch.equal(load(tiny_checkpoint, device_map="auto")(ids).logits, plain(ids).logits)


@pytest.mark.parametrize("checkpoint", ("tiny_checkpoint", "illada"), indirect=True)
@torch.no_grad()
def test_resized_embeddings_keep_old_rows_and_are_saved(checkpoint, tmp_path):
    """illada ties its head."""
    model, ids = load(checkpoint), some_ids()
    before, size = model(ids).logits, model.network.config.num_embeddings
    model.resize_token_embeddings(size + 8)
    after = model(ids).logits
    assert after.shape[-1] == size + 8 == model.config.vocab_size
    torch.testing.assert_close(
        after[..., :size], before, rtol=0, atol=measured(lambda model: model(ids).logits, model)
    )
    model.save_pretrained(tmp_path)
    network = load_model(tmp_path, device="cpu", dtype="float32")
    assert network.config.num_embeddings == size + 8 and torch.equal(network(ids), after)


@one_layout_each
@torch.no_grad()
def test_a_model_saved_in_shards_is_the_same(checkpoint, tmp_path):
    model, ids = load(checkpoint), some_ids()
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(shards) > 1 and sorted(set(index["weight_map"].values())) == shards
    again = load(tmp_path)
    assert torch.equal(again(ids).logits, model(ids).logits)
    for parameter in again.parameters():
        parameter.zero_()
    for shard in shards:  # as the Trainer resumes
        again.load_state_dict(load_file(tmp_path / shard), strict=False)
    assert torch.equal(again(ids).logits, model(ids).logits)
    with torch.device("meta"):
        empty = AutoModel.from_config(AutoConfig.from_pretrained(checkpoint))
    whole = {name: value for shard in shards for name, value in load_file(tmp_path / shard).items()}
    empty.load_state_dict(whole, assign=True)
    assert torch.equal(empty(ids).logits, model(ids).logits)
    with pytest.raises(RuntimeError, match="Missing key"):
        again.load_state_dict(load_file(tmp_path / shards[0]))
    again.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]
    assert load_file(tmp_path / "model.safetensors").keys() == index["weight_map"].keys()


def test_what_was_changed_in_a_config_is_saved(tiny_checkpoint, tmp_path):
    model = load(tiny_checkpoint)
    model.config.note = "mine"
    model.generation_config.max_new_tokens = 16
    model.save_pretrained(tmp_path)
    found = config_json(tmp_path)
    assert found["note"] == "mine"
    assert found.keys() - {"note"} <= config_json(tiny_checkpoint).keys() | {"dtype"}
    assert load(tmp_path).generation_config.max_new_tokens == 16


@torch.no_grad()
def test_dtype_is_as_asked_or_as_stored(tiny_checkpoint, tmp_path):
    load(tiny_checkpoint).to(torch.bfloat16).save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
    assert AutoModel.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32
    assert AutoModel.from_pretrained(tmp_path, dtype="float16").config.dtype == torch.float16


def test_a_config_makes_a_network_of_random_weights(tiny_checkpoint):
    config = AutoConfig.from_pretrained(tiny_checkpoint)
    ids, found = some_ids(), []
    for seed in (0, 0, 1):
        set_seed(seed)
        model = AutoModel.from_config(config)
        found.append(model(ids).logits)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    found[0].sum().backward()
    assert F.cross_entropy(found[2].flatten(0, 1), ids.flatten()).isfinite()


# --- what is refused ----------------------------------------------------------------------------

REFUSED = {
    "variant": (dict(variant="fp16"), "no argument variant"),
    "pickles": (dict(use_safetensors=False), "never pickles"),
    "their quantisation": (dict(quantization_config={"load_in_8bit": True}), "quantize='int8'"),
    "another network": (dict(n_layers=1), "n_layers: not as in .*config.json"),
    "dtype": (dict(dtype="float64"), "dtype must be auto or one of"),
}


@pytest.mark.parametrize("arguments, message", REFUSED.values(), ids=REFUSED)
def test_arguments_without_effect_are_refused_in_one_line(tiny_checkpoint, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        AutoModel.from_pretrained(tiny_checkpoint, **arguments)
    assert "\n" not in str(error.value)


def test_a_missing_tensor_is_named_and_not_made_up(tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(iter(tensors))
    del tensors[name]
    save_tensors(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"missing {name}"):
        AutoModel.from_pretrained(tmp_path)


CALLS = {
    "attentions": (lambda model, ids: model(ids, output_attentions=True), "not returned"),
    "past": (
        lambda model, ids: model(ids, past_key_values=object()),
        "past_key_values is not taken",
    ),
    "additive mask": (
        lambda model, ids: model(ids, torch.zeros(2, 1, 9, 9)),
        r"give \(B, L\)",
    ),
    "beams": (lambda model, ids: model.generate(ids, num_beams=2), "num_beams"),
    "misspelt": (lambda model, ids: model.generate(ids, treshold=0.9), "no argument treshold"),
    "beside": (
        lambda model, ids: model.generate(ids, SamplerConfig(), steps=2),
        "steps beside a SamplerConfig",
    ),
    "mask shape": (
        lambda model, ids: model.generate(ids, attention_mask=ids[:, 1:]),
        "expected the shape of input_ids",
    ),
    "pickles": (
        lambda model, ids: model.save_pretrained("unused", safe_serialization=False),
        "only safetensors are written",
    ),
}


@pytest.mark.parametrize("call, message", CALLS.values(), ids=CALLS)
def test_what_masked_diffusion_does_not_have_is_refused(tiny_checkpoint, call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(load(tiny_checkpoint), some_ids())
    assert "\n" not in str(error.value)


def test_a_config_without_a_known_architecture_is_refused(tiny_checkpoint):
    config = AutoConfig.from_pretrained(tiny_checkpoint)
    config.architectures = ["Other"]
    with pytest.raises(ValueError, match=r"architectures is \['Other'\], expected one of"):
        AutoModel.from_config(config)
