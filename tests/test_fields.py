"""Fields of config.json, generation_config.json and the tokenizer's files: read
rightly, without effect, or refused in one line.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llada_plugins import SamplerConfig, SpecialTokens, generate
from llada_plugins.diffusion.denoiser import Canvas, Prediction
from llada_plugins.engine.engine import Engine, Request
from llada_plugins.models.folder import read_config, special_tokens
from llada_plugins.models.loading import load_model, save_model
from llada_plugins.models.tokenizer import load_tokenizer
from llada_plugins.models.tokenizer_files import read_tokenizer_files
from training.data.byte_tokenizer import EOS, MASK, byte_tokenizer

Change = Callable[[Path], object]
# ids of the byte tokenizer's " " and "a" are not bytes; any two ordinary ids do
SPACE, LETTER = 32, 97


@pytest.fixture
def folder(tiny_checkpoint, tmp_path) -> Path:
    """A checkpoint that a test may change."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def edit(path: Path, **fields) -> None:
    """Set fields of a JSON file, which need not be there; None stays null."""
    raw = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**raw, **fields}))


def ids_of(folder: Path) -> dict[str, int]:
    return read_tokenizer_files(folder).added


def ends_at_once(folder: Path, token: int) -> tuple[int, int]:
    """Tokens and forwards of an answer in blocks of 8 whose first token is the one given."""
    engine = Engine(pretrained=str(folder), device="cpu")

    def denoise(canvas: Canvas, window: slice) -> Prediction:
        position = torch.arange(window.start, window.stop) - canvas.answer_start[:, None]  # (B, W)
        wanted = torch.where(position <= 0, LETTER, SPACE).masked_fill(position == 1, token)
        return Prediction.from_logits(
            30.0 * torch.nn.functional.one_hot(wanted, engine.model.config.vocab_size)
        )

    engine.denoise = denoise
    ((_, completion),) = engine.generate(
        [Request("p", engine.sampler_for(dict(gen_length=64, block_length=8)))]
    )
    return completion.num_tokens, completion.num_forwards


# ---- ends of answers (cases/20: a list, as Llama 3 has)

LISTS = {
    "config.json": lambda folder, ids: edit(folder / "config.json", eos_token_id=ids),
    "generation_config.json": lambda folder, ids: edit(
        folder / "generation_config.json", eos_token_id=ids
    ),
    "one in each": lambda folder, ids: (
        edit(folder / "config.json", eos_token_id=ids[0]),
        edit(folder / "generation_config.json", eos_token_id=ids[1]),
    ),
}


@pytest.mark.parametrize("place", LISTS)
def test_every_id_of_an_eos_list_ends_an_answer(folder, place):
    eos, other = ids_of(folder)[EOS], 7
    assert ends_at_once(folder, eos) == (1, 8)
    assert ends_at_once(folder, other) == (64, 64)
    LISTS[place](folder, [eos, other])
    assert ends_at_once(folder, eos) == ends_at_once(folder, other) == (1, 8)
    assert special_tokens(folder, read_config(folder)).ends == (
        eos,
        ids_of(folder)["<|eot_id|>"],
        other,
    )


def test_the_tokenizers_eos_token_ends_an_answer_that_no_config_ends(folder):
    edit(folder / "config.json", eos_token_id=None)
    assert ends_at_once(folder, ids_of(folder)[EOS]) == (1, 8)
    edit(folder / "tokenizer_config.json", eos_token="<|end_header_id|>")
    assert ends_at_once(folder, ids_of(folder)["<|end_header_id|>"]) == (1, 8)


def test_no_id_of_an_eos_list_is_written_under_logits_eos_inf(make_model):
    model = make_model()
    free = generate(model, [[5, 6]], SamplerConfig(gen_length=8))[0].answer
    model.special_tokens = SpecialTokens(39, free[0], more_eos=tuple(free[1:3]))
    kept = generate(model, [[5, 6]], SamplerConfig(gen_length=8, logits_eos_inf=True))[0].answer
    assert not set(kept) & set(free[:3])


def test_an_eos_list_survives_loading_and_saving(folder, tmp_path):
    edit(folder / "config.json", eos_token_id=[257, 7])
    edit(folder / "generation_config.json", eos_token_id=[7, 9])
    model = load_model(folder, device="cpu")
    save_model(model, tmp_path / "saved")
    assert read_config(tmp_path / "saved") == model.config and model.config.ends == (257, 7, 9)
    model.origin = None  # as of a model that was made, not loaded
    save_model(model, tmp_path / "made")
    assert json.loads((tmp_path / "made" / "config.json").read_text())["eos_token_id"] == [
        257,
        7,
        9,
    ]
    assert read_config(tmp_path / "made") == model.config and model.config.eos_token_id == 257


# ---- fields that change what is computed

REFUSED = {
    "rope scaling": (
        dict(rope_scaling={"type": "linear", "factor": 2.0}),
        "rope_scaling is {.*}, which is not implemented",
    ),
    "rope of transformers 5": (
        dict(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}),
        "rope_parameters is",
    ),
    "another rope_theta there": (
        dict(rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
        "rope_parameters is",
    ),
    "window": (dict(sliding_window=32), "sliding_window is 32"),
    "soft cap": (dict(attn_logit_softcapping=50.0), "attn_logit_softcapping is 50.0"),
    "clip": (dict(clip_qkv=8), "clip_qkv is 8"),
    "experts": (dict(num_experts=64), "num_experts is 64"),
    "head width": (dict(head_dim=16), "head_dim is 16"),
    "partial rope": (dict(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5"),
    "alibi": (dict(alibi=True), "alibi is True, but only False is implemented"),
    "scaled logits": (dict(scale_logits=True), "scale_logits is True"),
    "a number for a switch": (dict(rope=1), "rope is 1, but only True"),
    "a switch for a number": (dict(block_group_size=True), "block_group_size is True, but only 1"),
    "text for a number": (dict(d_model="32"), "d_model is '32', expected a whole number"),
    "negative": (dict(n_layers=-1), "n_layers is -1, expected a whole number from 1"),
    "text for a switch": (
        dict(weight_tying="false"),
        "weight_tying is 'false', expected true or false",
    ),
    "no theta": (dict(rope_theta=0), "rope_theta is 0, expected a number from 1"),
    "no epsilon": (dict(rms_norm_eps=0.0), "rms_norm_eps is 0.0"),
    "small table": (dict(embedding_size=3), r"embedding_size \(3\) is below vocab_size"),
    "foreign end": (
        dict(eos_token_id=[257, 999]),
        "eos_token_id names 999, outside the vocabulary of 262",
    ),
    "odd heads": (dict(n_heads=32), "do not divide each other into heads of even width"),
    "list of texts": (
        dict(eos_token_id=["</s>"]),
        r"eos_token_id\[0\] is '</s>', expected a whole number",
    ),
}
GENERATION = {
    "ends": (
        dict(eos_token_id="257"),
        "generation_config.json: eos_token_id is '257', expected a whole number",
    ),
    "foreign end": (dict(eos_token_id=999), "generation_config.json: eos_token_id names 999"),
    "suppressed": (
        dict(suppress_tokens=[5]),
        r"suppress_tokens is \[5\], which has no effect here",
    ),
    "bad words": (dict(bad_words_ids=[[5]]), "bad_words_ids"),
    "penalty": (dict(repetition_penalty=1.05), "repetition_penalty is 1.05"),
    "stop": (dict(stop_strings=["\n"]), "stop_strings"),
}
NEUTRAL = dict(
    rope_scaling=None,
    rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    sliding_window=None,
    num_experts=0,
    head_dim=8,
    partial_rotary_factor=1.0,
    clip_qkv=None,
    tie_word_embeddings=False,
    torch_dtype="bfloat16",
    alibi_bias_max=8.0,
)


@pytest.mark.parametrize(
    "name, mistake",
    [("config.json", each) for each in REFUSED]
    + [("generation_config.json", each) for each in GENERATION],
)
def test_a_field_that_would_change_answers_is_refused_by_file_and_name(folder, name, mistake):
    fields, message = (REFUSED if name == "config.json" else GENERATION)[mistake]
    edit(folder / name, **fields)
    with pytest.raises(ValueError, match=f"{name}: .*{message.removeprefix(name + ': ')}") as error:
        load_model(folder, device="cpu")
    assert "\n" not in str(error.value)


def test_fields_that_ask_for_nothing_are_taken_in_silence_and_unknown_ones_are_told(folder, caplog):
    before = load_model(folder, device="cpu")(torch.arange(8)[None])
    edit(folder / "config.json", **NEUTRAL)
    edit(
        folder / "generation_config.json",
        temperature=0.6,
        top_p=0.9,
        do_sample=True,
        max_length=20,
        repetition_penalty=1.0,
        suppress_tokens=None,
        bad_words_ids=[],
        bos_token_id=256,
    )
    with caplog.at_level(logging.WARNING, "llada_plugins"):
        assert torch.equal(load_model(folder, device="cpu")(torch.arange(8)[None]), before)
        assert not caplog.records
        edit(folder / "config.json", new_idea=3)
        load_model(folder, device="cpu")
    assert "are not read, which published configs do not have like this: new_idea" in caplog.text


# ---- tokenizers

TOKENIZERS = {
    "torn": (
        lambda folder: (folder / "tokenizer.json").write_text('{"model": {}'),
        "tokenizer.json is not valid JSON",
    ),
    "no model": (
        lambda folder: edit(folder / "tokenizer.json", model={"type": "None"}),
        "tokenizer.json.* cannot be loaded: ",
    ),
    "list": (
        lambda folder: edit(folder / "tokenizer.json", added_tokens={}),
        r"tokenizer.json: added_tokens is \{\}, expected a list",
    ),
    "number": (
        lambda folder: edit(folder / "tokenizer_config.json", bos_token=5),
        "tokenizer_config.json: bos_token is 5, expected",
    ),
    "template": (
        lambda folder: edit(folder / "tokenizer_config.json", chat_template=[{"name": "a"}]),
        r"tokenizer_config.json: chat_template\[0\].template is missing, expected a string",
    ),
    "key": (
        lambda folder: edit(
            folder / "tokenizer_config.json",
            added_tokens_decoder={"256": {"content": EOS, "rsdrip": True}},
        ),
        r"added_tokens_decoder\['256'\]\['rsdrip'\] is True, expected no field of that name",
    ),
    "ids": (
        lambda folder: edit(
            folder / "tokenizer_config.json", added_tokens_decoder={"5": {"content": EOS}}
        ),
        "disagree on the id of",
    ),
    "unknown end": (
        lambda folder: edit(folder / "tokenizer_config.json", eos_token="<|im_end|>"),
        "eos_token is '<|im_end|>', which is no token",
    ),
    "BOS": (
        lambda folder: edit(folder / "tokenizer_config.json", add_bos_token=True),
        "add_bos_token=true, but tokenizer.json does not add",
    ),
    "EOS": (
        lambda folder: edit(folder / "tokenizer_config.json", add_eos_token=True),
        "add_eos_token=true, but tokenizer.json does not add",
    ),
    "space": (
        lambda folder: edit(folder / "tokenizer_config.json", add_prefix_space=True),
        "add_prefix_space is True in tokenizer_config.json",
    ),
    "other file": (
        lambda folder: edit(
            folder / "tokenizer_config.json", fast_tokenizer_files=["tokenizer.9.json"]
        ),
        "fast_tokenizer_files",
    ),
    "folder": (
        lambda folder: ((folder / "tokenizer.json").unlink(), (folder / "tokenizer.json").mkdir()),
        "tokenizer.json is a folder",
    ),
}


@pytest.mark.parametrize("mistake", TOKENIZERS)
def test_a_tokenizer_that_does_not_do_what_its_files_say_is_refused_in_one_line(tmp_path, mistake):
    byte_tokenizer(tmp_path)
    damage, message = TOKENIZERS[mistake]
    damage(tmp_path)
    with pytest.raises((ValueError, OSError), match=message) as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_names_of_special_tokens_are_read_where_transformers_reads_them(tmp_path):
    """A published special_tokens_map.json is no JSON, beside a tokenizer_config.json
    that makes it superfluous.
    """
    ids = byte_tokenizer(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text('{"additional_special_tokens": ["a" "b"]}')
    assert load_tokenizer(tmp_path).eos_token_id == ids[EOS]
    raw = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del raw["added_tokens_decoder"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="special_tokens_map.json is not valid JSON"):
        load_tokenizer(tmp_path)


def test_a_token_that_the_model_does_not_know_is_refused_before_a_forward(tmp_path, make_model):
    ids = byte_tokenizer(tmp_path)
    save_model(
        make_model(vocab_size=ids[MASK] + 1, mask_token_id=ids[MASK], eos_token_id=ids[EOS]),
        tmp_path,
    )
    engine = Engine(pretrained=str(tmp_path), device="cpu")
    assert engine.encode("a")
    with pytest.raises(
        ValueError, match="its tokenizer makes token 261, its model's vocabulary ends at 258"
    ):
        engine.encode("a<|eot_id|>")
    with pytest.raises(ValueError, match="its tokenizer makes token 261"):
        engine.encode_pair("a", "<|eot_id|>")


# ---- shards


def test_a_shard_stays_in_its_folder_by_name_and_a_link_out_of_it_is_a_caches_business(
    folder, tmp_path
):
    (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "part.safetensors").symlink_to(tmp_path / "blob")
    names = list(load_state(tmp_path / "blob"))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "part.safetensors")}))
    load_model(folder, device="cpu")
    (tmp_path / "blob").rename(tmp_path / "part.safetensors")
    for outside in (
        "../part.safetensors",
        str(tmp_path / "part.safetensors"),
        "a/../../part.safetensors",
        "..\\part.safetensors",
        "C:\\part.safetensors",
        "part.bin",
        5,
    ):
        index.write_text(json.dumps({"weight_map": dict.fromkeys(names, outside)}))
        with pytest.raises(
            ValueError,
            match=r"index.json: weight_map\[.*\] is .*, expected a .safetensors file in the folder",
        ):
            load_model(folder, device="cpu")


def test_a_tensor_that_the_index_does_not_name_is_told(folder):
    names = list(load_state(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(names[1:], "part.safetensors")})
    )
    with pytest.raises(ValueError, match=f"left over {names[0]} in part.safetensors"):
        load_model(folder, device="cpu")


SPOILT = {
    "whole numbers": (
        lambda tensor: tensor.to(torch.int64),
        "q_proj.weight is I64, expected F64 or F32",
    ),
    "8 bits": (lambda tensor: tensor.to(torch.float8_e4m3fn), "q_proj.weight is F8_E4M3, expected"),
    "NaN": (
        lambda tensor: tensor.clone().fill_(torch.nan),
        "q_proj.weight holds NaN or infinity in float32",
    ),
    "a flipped bit of an exponent": (
        lambda tensor: tensor.clone().index_fill_(0, torch.tensor([3]), -(2.0**120)),
        r"q_proj.weight holds 1.3e\+36, whose products are infinite: the file is damaged",
    ),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_weights_that_are_no_finite_floats_are_refused_by_name(folder, spoilt):
    from safetensors.torch import save_file

    change, message = SPOILT[spoilt]
    state = load_state(folder / "model.safetensors")
    name = "model.transformer.blocks.0.q_proj.weight"
    save_file({**state, name: change(state[name])}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        load_model(folder, device="cpu")


def load_state(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


# ---- chat templates

TEMPLATES = [
    {"name": "default", "template": "D{{ messages[0]['content'] }}"},
    {"name": "tool_use", "template": "T{{ messages[0]['content'] }}"},
]
CHAT = [{"role": "user", "content": "?"}]


def in_config(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", chat_template=TEMPLATES)


def in_files(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", chat_template=None)
    (folder / "additional_chat_templates").mkdir()
    (folder / "chat_template.jinja").write_text(TEMPLATES[0]["template"])
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(TEMPLATES[1]["template"])


@pytest.mark.parametrize("spread", [in_config, in_files])
def test_of_several_chat_templates_the_named_one_is_rendered_and_the_default_otherwise(
    folder, spread
):
    spread(folder)
    engine = Engine(pretrained=str(folder), device="cpu")
    assert engine.render_chat(CHAT) == "D?" and engine.info()["chat_template"] is None
    named = Engine(pretrained=str(folder), device="cpu", chat_template="tool_use")
    assert named.render_chat(CHAT) == "T?" and named.info()["chat_template"] == "tool_use"
    assert named.fingerprint() != engine.fingerprint()
    with pytest.raises(
        ValueError,
        match="chat_template='chat': this tokenizer's chat templates are default, tool_use",
    ):
        Engine(pretrained=str(folder), device="cpu", chat_template="chat")


def test_a_name_for_the_only_template_and_several_without_a_default_are_refused(folder):
    with pytest.raises(ValueError, match="has one chat template, which has no name: leave it out"):
        Engine(pretrained=str(folder), device="cpu", chat_template="default")
    edit(folder / "tokenizer_config.json", chat_template=TEMPLATES[1:])
    with pytest.raises(
        ValueError,
        match="has the chat templates tool_use and none is the default: pass chat_template=NAME",
    ):
        Engine(pretrained=str(folder), device="cpu").render_chat(CHAT)


def test_a_changed_template_file_changes_the_checkpoints_digest(folder):
    in_files(folder)
    before = Engine(pretrained=str(folder), device="cpu").info()["checkpoint_digest"]
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("other")
    assert Engine(pretrained=str(folder), device="cpu").info()["checkpoint_digest"] != before


def test_the_template_that_lm_eval_names_is_recorded_and_rendered(folder):
    lmeval_models = pytest.importorskip("llada_plugins.lmeval_models")
    in_config(folder)
    model = lmeval_models.LLaDA(pretrained=str(folder), device="cpu")
    assert model.chat_template(True) == TEMPLATES[0]["template"]
    assert model.apply_chat_template(CHAT) == "D?"
    assert model.chat_template("tool_use") == TEMPLATES[1]["template"]
    assert model.apply_chat_template(CHAT) == "T?"
    assert model.chat_template("tool_use") == TEMPLATES[1]["template"]  # told once for every task
    assert model.chat_template(True) == TEMPLATES[0]["template"]  # of another run
    assert model.apply_chat_template(CHAT) == "D?"
    named = lmeval_models.LLaDA(pretrained=str(folder), device="cpu", chat_template="tool_use")
    assert named.chat_template(True) == TEMPLATES[1]["template"]
    with pytest.raises(
        ValueError,
        match="'default' was asked for, and chat_template='tool_use' in the options: give one of",
    ):
        named.chat_template("default")


def test_an_evaluation_from_python_renders_the_template_that_it_names(folder, tmp_path):
    """There lm-eval tells no model the name, unless its results are written to a folder."""
    lmeval_models = pytest.importorskip("llada_plugins.lmeval_models")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    in_config(folder)
    (tmp_path / "docs.jsonl").write_text('{"question": "?"}\n')
    (tmp_path / "named_template.yaml").write_text(
        "task: named_template\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {tmp_path / 'docs.jsonl'}\ntest_split: test\noutput_type: generate_until\n"
        'doc_to_text: "{{question}}"\ndoc_to_target: a\n'
        "generation_kwargs:\n  until: []\n  max_gen_toks: 4\n"
        "metric_list:\n  - metric: exact_match\n"
    )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    model = lmeval_models.LLaDA(pretrained=str(folder), device="cpu")

    def prompt(template: bool | str) -> str:
        found = simple_evaluate(
            model=model,
            tasks=["named_template"],
            task_manager=manager,
            apply_chat_template=template,
            bootstrap_iters=0,
        )
        return found["samples"]["named_template"][0]["arguments"][0][0]

    assert [prompt(each) for each in (True, "tool_use", "default", True)] == [
        "D?",
        "T?",
        "D?",
        "D?",
    ]
    with pytest.raises(ValueError, match="chat_template='chat': this tokenizer's chat templates"):
        prompt("chat")
