"""LoRA: adapters in peft's layout, trained, loaded at evaluation and merged; what does
not fit is refused before weights are read.
"""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from llada_plugins.engine.engine import Engine, Request
from llada_plugins.models import weights
from llada_plugins.models.fingerprint import backbone_fingerprint
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.loading import load_model, save_model
from llada_plugins.models.lora import CONFIG, PREFIX, WEIGHTS, targeted
from llada_plugins.models.quantization import METHODS
from tests.small_training import short_run
from tests.tolerance import measured, rounding
from training import merge, sft
from training.runs.lora_adapters import OF_SOME, PROJECTIONS, STACKS, LoRA, LoRAOptions, add_lora

pytestmark = pytest.mark.floats

RUN = short_run(append_eos="false", learning_rate=1e-2, warmup_steps=0, max_steps=3)
TOKENS = torch.arange(24)[None] * 7 % 256
SOMEWHERE = "model.transformer.blocks.1.ff_out"


def tuned(checkpoint_folder: Path, sudokus: Path, out: Path, *more: str) -> Path:
    sft.main(
        [
            "--model",
            str(checkpoint_folder),
            "--data",
            str(sudokus),
            "--output_dir",
            str(out),
            *RUN,
            "--lora",
            *more,
        ]
    )
    return out


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, tiny_checkpoint, sudokus) -> Path:
    """An adapter that three updates have trained."""
    return tuned(tiny_checkpoint, sudokus, tmp_path_factory.mktemp("adapter") / "out")


def logits(model: LLaDA) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS)


def by_peft(base: Path, folder: Path) -> LLaDA:
    """The model with the adapter beside its weights, as peft has it."""
    return peft.PeftModel.from_pretrained(load_model(base, device="cpu"), folder)


# --- training -------------------------------------------------------------------------


def test_a_run_leaves_an_adapter_that_peft_and_this_package_load_alike(tiny_checkpoint, adapter):
    assert {path.name for path in adapter.iterdir()} == {
        CONFIG,
        WEIGHTS,
        "metrics.jsonl",
        "run.json",
    }
    beside = by_peft(tiny_checkpoint, adapter)
    expected, plain = logits(beside), logits(load_model(tiny_checkpoint, device="cpu"))
    found = logits(load_model(tiny_checkpoint, device="cpu", peft=adapter))
    torch.testing.assert_close(
        found, expected, atol=measured(lambda of: of(TOKENS), beside), rtol=0
    )
    assert (expected - plain).abs().max() > 0.1


def test_the_blocks_projections_are_adapted_and_never_the_head(
    adapter, tiny_checkpoint, sudokus, tmp_path
):
    expected = {
        f"{PREFIX}model.transformer.blocks.{layer}.{name}.lora_{part}.weight"
        for layer in range(2)
        for name in PROJECTIONS
        for part in "AB"
    }
    assert load_file(adapter / WEIGHTS).keys() == expected
    few = load_file(
        tuned(
            tiny_checkpoint,
            sudokus,
            tmp_path / "few",
            "--lora_target",
            "q_proj,ff_out",
            "--lora_r",
            "3",
        )
        / WEIGHTS
    )
    assert few.keys() == {name for name in expected if ".q_proj." in name or ".ff_out." in name}
    assert {tensor.shape[0] for name, tensor in few.items() if name.endswith("lora_A.weight")} == {
        3
    }


@pytest.mark.parametrize(
    "target, expected",
    [
        ("q_proj,ff_out", ["0.q_proj", "0.ff_out", "1.q_proj", "1.ff_out"]),
        ("q_proj|v_proj", ["0.q_proj", "0.v_proj", "1.q_proj", "1.v_proj"]),
        ("ff_.*", ["0.ff_out", "0.ff_proj", "1.ff_out", "1.ff_proj"]),
        (r"blocks\.[1-3]\.([qk])_proj", ["1.k_proj", "1.q_proj"]),
        (r".*\.0\.(?!ff_).*", ["0.attn_out", "0.k_proj", "0.q_proj", "0.up_proj", "0.v_proj"]),
        (".*", [f"{block}.{name}" for block in range(2) for name in PROJECTIONS]),
        (r".*ff_out|.*wte|.*", [f"{block}.{name}" for block in range(2) for name in PROJECTIONS]),
    ],
)
def test_a_target_is_names_or_a_regular_expression_within_the_blocks(make_model, target, expected):
    lora = LoRAOptions(lora=True, lora_target=target).adapters
    model = make_model()
    by_us = targeted(dict(model.named_modules()), lora.pattern)  # as an adapter is read
    add_lora(model, lora, torch.Generator().manual_seed(0))
    by_peft = {
        name.partition(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name
    }
    assert by_peft == by_us.keys() == {f"model.transformer.blocks.{each}" for each in expected}


def test_the_adapter_says_what_it_was_trained_on(adapter, tiny_checkpoint):
    raw = json.loads((adapter / CONFIG).read_text())
    assert (raw["peft_type"], raw["r"], raw["lora_alpha"], raw["base_model_name_or_path"]) == (
        "LORA",
        8,
        16.0,
        str(tiny_checkpoint),
    )
    with safe_open(adapter / WEIGHTS, "pt") as file:
        assert file.metadata()["backbone"] == backbone_fingerprint(
            load_model(tiny_checkpoint, device="cpu")
        )


def test_flags_that_are_left_out_have_the_defaults_that_help_states():
    assert LoRAOptions().adapters is None
    assert LoRAOptions(lora=True).adapters == LoRA(8, 16.0, 0.0, (*PROJECTIONS, *OF_SOME, *STACKS))
    given = LoRAOptions(lora=True, lora_r=4, lora_alpha=2.0, lora_dropout=0.1, lora_target="v_proj")
    assert given.adapters == LoRA(4, 2.0, 0.1, ("v_proj",))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--lora_r", "4"], "--lora_r needs --lora"),
        (["--lora", "--lora_r", "0"], "--lora_r must be at least 1, got 0"),
        (["--lora", "--lora_alpha", "0"], "--lora_alpha must be above 0, got 0.0"),
        (
            ["--lora", "--lora_dropout", "1"],
            "--lora_dropout must be at least 0 and below 1, got 1.0",
        ),
        (
            ["--lora", "--lora_target", "q_proj,lm_head"],
            "--lora_target 'q_proj,lm_head' names no projection of a block: there are q_proj, .*, "
            "ff_out, "
            "in full blocks.0.q_proj to blocks.1.ff_out",
        ),
        (
            ["--lora", "--lora_target", "wte"],
            "--lora_target 'wte' names no projection of a block: .*",
        ),
        (
            ["--lora", "--lora_target", "proj"],
            "--lora_target 'proj' names no projection of a block: .*",
        ),
        (
            ["--lora", "--lora_target", "blocks.2.*"],
            "--lora_target 'blocks.2.*' names no projection of a block: .*",
        ),
        (["--lora", "--lora_target="], "--lora_target is empty: leave it out .*"),
        (
            ["--lora", "--lora_target", "a)|(.*"],
            "--lora_target .* is no regular expression: unbalanced parenthesis at position 1",
        ),
        (
            ["--lora", "--lora_target", "(?i)Q_PROJ"],
            "--lora_target .* is no regular expression: global flags not at the start .*",
        ),
    ],
)
def test_bad_flags_end_with_one_line(tmp_path, tiny_checkpoint, sudokus, flags, message):
    with pytest.raises(SystemExit, match=f"^error: {message}$"):
        sft.main(
            [
                "--model",
                str(tiny_checkpoint),
                "--data",
                str(sudokus),
                "--output_dir",
                str(tmp_path / "out"),
                *RUN,
                *flags,
            ]
        )
    assert not (tmp_path / "out").exists()


def test_a_model_from_scratch_has_nothing_to_adapt(tmp_path):
    with pytest.raises(SystemExit, match="--lora adapts a checkpoint"):
        sft.main(
            ["--preset", "sudoku4", "--lora", "--output_dir", str(tmp_path / "out"), "--use_cpu"]
        )


# --- loading --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        dict(r=2, lora_alpha=5, target_modules=r".*\.blocks\.\d+\.(q_proj|ff_out)"),
        dict(r=4, lora_alpha=3, use_rslora=True, target_modules=["v_proj", "up_proj"]),
        dict(r=1, target_modules=["ff_out"]),  # the head as well, by peft's rule for lists
        dict(r=2, init_lora_weights="gaussian", target_modules=["0.q_proj"]),
    ],
    ids=["pattern", "rslora", "head", "end of a name"],
)
def test_adapters_made_by_peft_are_merged_as_peft_merges_them(tiny_checkpoint, tmp_path, options):
    torch.manual_seed(0)
    made = peft.get_peft_model(
        load_model(tiny_checkpoint, device="cpu"), peft.LoraConfig(**options)
    )
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.2)
    made.save_pretrained(tmp_path)
    factors = max(
        parameter.abs().max() for name, parameter in made.named_parameters() if "lora_" in name
    )
    scale = max(
        module.scaling["default"] for module in made.modules() if hasattr(module, "scaling")
    )
    change = scale * options["r"] * factors**2  # of a weight, at most
    found = load_model(tiny_checkpoint, device="cpu", peft=tmp_path)
    expected = made.merge_and_unload().state_dict()
    assert found.state_dict().keys() == expected.keys()
    for name, tensor in found.state_dict().items():  # r products, a scale and a sum
        bound = rounding(2 * (options["r"] + 2), tensor.abs().max() + change)
        torch.testing.assert_close(
            tensor,
            expected[name],
            atol=bound,
            rtol=0,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_the_sum_is_rounded_once_in_a_model_of_16_bits(tiny_checkpoint, adapter):
    full, exact = (
        load_model(tiny_checkpoint, device="cpu", peft=folder).state_dict()
        for folder in (None, adapter)
    )
    rounded = load_model(tiny_checkpoint, device="cpu", dtype="bfloat16").state_dict()
    for name, tensor in (
        load_model(tiny_checkpoint, device="cpu", dtype="bfloat16", peft=adapter)
        .state_dict()
        .items()
    ):
        expected = rounded[name].double() + (exact[name].double() - full[name].double())
        # half a unit in the last of 8 bits, and what fp32 loses in the sum of 8
        # products
        assert tensor.dtype == torch.bfloat16
        bound = expected.abs() / 2**8 + rounding(2 * 10, expected)
        assert ((tensor.double() - expected).abs() <= bound).all(), name


@pytest.mark.parametrize("quantize", METHODS)
def test_the_adapter_is_merged_before_weights_are_quantised(
    tiny_checkpoint, adapter, tmp_path, quantize
):
    pytest.importorskip(METHODS[quantize].package)
    merge.main(
        [
            "--model",
            str(tiny_checkpoint),
            "--peft",
            str(adapter),
            "--output",
            str(tmp_path / "merged"),
        ]
    )
    expected = load_model(tmp_path / "merged", device="cpu", quantize=quantize)
    found = load_model(tiny_checkpoint, device="cpu", quantize=quantize, peft=adapter)
    assert torch.equal(logits(found), logits(expected))
    assert (
        backbone_fingerprint(found)
        == backbone_fingerprint(expected)
        != backbone_fingerprint(load_model(tiny_checkpoint, device="cpu"))
    )


def changed(adapter: Path, folder: Path, tensors=None, **config) -> Path:
    """A copy of the adapter, changed."""
    folder.mkdir()
    (folder / CONFIG).write_text(
        json.dumps({**json.loads((adapter / CONFIG).read_text()), **config})
    )
    found = load_file(adapter / WEIGHTS)
    save_file(tensors(found) if tensors else found, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize(
    "tensors, config, message",
    [
        (
            lambda all: {name: tensor for name, tensor in all.items() if SOMEWHERE not in name},
            {},
            rf"missing {PREFIX}{SOMEWHERE}.lora_A.weight; missing "
            rf"{PREFIX}{SOMEWHERE}.lora_B.weight",
        ),
        (
            lambda all: {**all, "base_model.model.other.lora_A.weight": torch.zeros(2, 2)},
            {},
            "left over base_model.model.other.lora_A.weight",
        ),
        (None, {"r": 4}, r"lora_A.weight is \[8, 32\], expected \[4, 32\]"),
        (
            None,
            {"target_modules": r".*\.q_proj"},
            f"left over {PREFIX}model.transformer.blocks.0.attn_out.lora_A.weight",
        ),
        (
            lambda all: {},
            {"target_modules": "no_such_module"},
            r"target_modules \('no_such_module'\) names none of its modules",
        ),
        (
            None,
            {"target_modules": ["wte"]},
            "names model.transformer.wte, a Embedding: only Linears can be adapted",
        ),
        (None, {"target_modules": "("}, "are no regular expression"),
        (None, {"use_dora": True}, "use_dora is True, but only plain LoRA is read"),
        (None, {"bias": "all"}, "bias is 'all', but only plain LoRA"),
        (None, {"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        (None, {"modules_to_save": ["wte"]}, "modules_to_save"),
        (None, {"some_day": {"kind": "new"}}, "some_day"),
        (
            None,
            {"init_lora_weights": "pissa"},
            "init_lora_weights is 'pissa', expected true or false or \"gaussian\"",
        ),
        (None, {"peft_type": "LOHA"}, "peft_type is 'LOHA', expected \"LORA\""),
        (None, {"lora_alpha": 10**400}, "lora_alpha is 1000.*, expected a number from"),
        (None, {"r": 0}, "r is 0, expected a whole number from 1 to"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_before_weights_are_read(
    tiny_checkpoint, adapter, tmp_path, monkeypatch, tensors, config, message
):
    monkeypatch.setattr(weights, "load_tensors", None)
    with pytest.raises(ValueError, match=message) as error:
        load_model(
            tiny_checkpoint,
            device="cpu",
            peft=changed(adapter, tmp_path / "changed", tensors, **config),
        )
    assert "\n" not in str(error.value)


def test_another_base_is_refused_by_its_shapes_or_its_fingerprint(
    make_model, adapter, tiny_checkpoint, tmp_path
):
    config = load_model(tiny_checkpoint, device="cpu").config
    save_model(
        make_model(seed=1, vocab_size=config.vocab_size, max_sequence_length=128),
        tmp_path / "other",
    )
    with pytest.raises(
        ValueError,
        match=rf"peft={adapter}: this adapter was trained on another backbone \(fingerprint "
        r"[0-9a-f]+",
    ):
        load_model(tmp_path / "other", device="cpu", peft=adapter)
    save_model(make_model(vocab_size=config.vocab_size, d_model=16), tmp_path / "small")
    with pytest.raises(
        ValueError,
        match="does not fit the model: .* expected .*: give pretrained= the model that it was "
        "trained on",
    ):
        load_model(tmp_path / "small", device="cpu", peft=adapter)


@pytest.mark.parametrize("absent", [CONFIG, WEIGHTS])
def test_a_folder_without_an_adapter_is_refused_by_the_file(
    tiny_checkpoint, adapter, tmp_path, absent
):
    folder = changed(adapter, tmp_path / "copy")
    (folder / absent).unlink()
    with pytest.raises(FileNotFoundError, match=f"peft={folder}: no {absent} there"):
        load_model(tiny_checkpoint, device="cpu", peft=folder)


def test_torn_files_and_packed_weights_are_refused(tiny_checkpoint, adapter, tmp_path):
    with pytest.raises(ValueError, match="cannot be merged into weights that stay packed"):
        load_model(tiny_checkpoint, device="cpu", peft=adapter, quantize="packed")
    torn = changed(adapter, tmp_path / "torn")
    (torn / WEIGHTS).write_bytes(b"torn")
    with pytest.raises(ValueError, match=f"{WEIGHTS} is not a readable safetensors file"):
        load_model(tiny_checkpoint, device="cpu", peft=torn)
    (torn / CONFIG).write_text("{")
    with pytest.raises(ValueError, match=f"{CONFIG} is not valid JSON"):
        load_model(tiny_checkpoint, device="cpu", peft=torn)
    with pytest.raises(FileNotFoundError, match="peft='./absent': no such folder"):
        load_model(tiny_checkpoint, device="cpu", peft="./absent")


# --- merging --------------------------------------------------------------------------


def test_a_merged_checkpoint_is_the_model_with_its_adapter(
    tiny_checkpoint, adapter, tmp_path, capsys
):
    out = tmp_path / "merged"
    assert (
        merge.main(["--model", str(tiny_checkpoint), "--peft", str(adapter), "--output", str(out)])
        == 0
    )
    assert {path.name for path in out.iterdir()} == {
        path.name for path in tiny_checkpoint.iterdir()
    }
    assert torch.equal(
        logits(load_model(out, device="cpu")),
        logits(load_model(tiny_checkpoint, device="cpu", peft=adapter)),
    )
    assert json.loads((out / "config.json").read_text())["training"]["merged"]["peft"] == str(
        adapter
    )
    assert "merged, float32" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="is not empty"):
        merge.main(["--model", str(tiny_checkpoint), "--peft", str(adapter), "--output", str(out)])


def test_merged_weights_have_the_dtype_of_the_models_files(tiny_checkpoint, adapter, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).write_bytes((tiny_checkpoint / name).read_bytes())
    # the same model
    save_model(load_model(tiny_checkpoint, device="cpu", dtype="bfloat16"), tmp_path)
    merge.main(
        ["--model", str(tmp_path), "--peft", str(adapter), "--output", str(tmp_path / "merged")]
    )
    assert {
        tensor.dtype for tensor in load_file(tmp_path / "merged" / "model.safetensors").values()
    } == {torch.bfloat16}


def test_nothing_is_left_of_a_merge_that_fails(adapter, tmp_path):
    with pytest.raises(SystemExit, match="^error: peft=.*does not fit the model"):
        merge.main(
            ["--model", "tiny", "--peft", str(adapter), "--output", str(tmp_path / "merged")]
        )
    assert not list(tmp_path.iterdir())


def test_a_full_disk_ends_a_merge_with_one_line(tiny_checkpoint, adapter, tmp_path, full_disk):
    with full_disk(20_000), pytest.raises(SystemExit) as exit_info:
        merge.main(
            [
                "--model",
                str(tiny_checkpoint),
                "--peft",
                str(adapter),
                "--output",
                str(tmp_path / "merged"),
            ]
        )
    assert str(exit_info.value.code).startswith(
        f"error: output {tmp_path / 'merged'} could not be written ("
    )
    assert "\n" not in str(exit_info.value.code) and not list(tmp_path.iterdir())


# --- in the harnesses -----------------------------------------------------------------


def test_an_engine_answers_as_the_merged_model_does_and_says_so(tiny_checkpoint, adapter, tmp_path):
    merge.main(
        [
            "--model",
            str(tiny_checkpoint),
            "--peft",
            str(adapter),
            "--output",
            str(tmp_path / "merged"),
        ]
    )
    options = dict(device="cpu", gen_length=8, steps=8)
    plain = Engine(pretrained=str(tiny_checkpoint), **options)
    adapted = Engine(pretrained=str(tiny_checkpoint), peft=str(adapter), **options)
    merged = Engine(pretrained=str(tmp_path / "merged"), **options)
    texts = [
        [completion.text for _, completion in engine.generate([Request("12..34", engine.sampler)])]
        for engine in (plain, adapted, merged)
    ]
    assert texts[1] == texts[2] != texts[0]
    assert len({engine.fingerprint() for engine in (plain, adapted, merged)}) == 3
    (tmp_path / "moved").mkdir()
    for path in adapter.iterdir():
        (tmp_path / "moved" / path.name).write_bytes(path.read_bytes())
    assert (
        Engine(
            pretrained=str(tiny_checkpoint), peft=str(tmp_path / "moved"), **options
        ).fingerprint()
        == adapted.fingerprint()
    )
    changed(
        adapter,
        tmp_path / "changed",
        lambda all: {name: 2 * tensor for name, tensor in all.items()},
    )
    assert (
        Engine(
            pretrained=str(tiny_checkpoint), peft=str(tmp_path / "changed"), **options
        ).fingerprint()
        != adapted.fingerprint()
    )
    assert "peft_digest" in adapted.info() and "peft_digest" not in plain.info()


def test_both_harnesses_load_the_adapter(tiny_checkpoint, adapter):
    from llada_plugins.lmeval_models import LLaDA as LMEvalLLaDA
    from llada_plugins.opencompass_models import LLaDA as OpenCompassLLaDA

    expected = logits(load_model(tiny_checkpoint, device="cpu", peft=adapter))
    lmeval = LMEvalLLaDA.create_from_arg_string(
        f"pretrained={tiny_checkpoint},peft={adapter},device=cpu"
    )
    opencompass = OpenCompassLLaDA(path=str(tiny_checkpoint), peft=str(adapter), device="cpu")
    for harness in (lmeval, opencompass):
        assert torch.equal(logits(harness.engine.model), expected)
