"""Analysis: attention weights against a softmax written out, summaries in closed form,
agreement, the report's files and refusals.
"""

from __future__ import annotations

import json
import math

import pytest
import torch

from llada_plugins import analyze
from llada_plugins.engine.engine import Engine
from llada_plugins.models.bitower import AFTER_LAYERS, BiTowerLLaDA
from llada_plugins.models.block import RMSNorm
from llada_plugins.models.initial import initialise
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.rotary import rotary_table
from llada_plugins.reports.attention import attention_statistics, each_attention, summarise
from llada_plugins.reports.compare_samplers import agreement, default_settings, settings
from tests.tolerance import measured

pytestmark = pytest.mark.floats

TOKENS = torch.arange(12)[None] * 5 % 38


def written_out(model: LLaDA, tokens: torch.Tensor) -> list[torch.Tensor]:
    """softmax(q k / sqrt(d)) of every block (H, L, L), in fp64 loops over heads,
    queries and keys.
    """
    config, states = model.config, model.hidden_states(tokens, every_layer=True)
    cos, sin = (
        table.double()
        for table in rotary_table(tokens.shape[1], config.head_dim, config.rope_theta)
    )

    def rotated(vector: torch.Tensor, place: int, norm: RMSNorm | None) -> torch.Tensor:
        if norm is not None:
            vector = vector / (vector.pow(2).mean() + norm.eps).sqrt() * norm.weight.double()
        half = config.head_dim // 2
        turned = torch.cat([-vector[half:], vector[:half]])
        return vector * cos[place] + turned * sin[place]

    found = []
    for block, x in zip(model.model["transformer"]["blocks"], states):
        x = x[0].double()
        h = (
            x
            / (x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt()
            * block.attn_norm.weight.double()
        )
        q, k = (
            h @ proj.weight.double().T + (0 if proj.bias is None else proj.bias.double())
            for proj in (block.q_proj, block.k_proj)
        )
        weights = torch.zeros(config.n_heads, len(x), len(x), dtype=torch.float64)
        for head in range(config.n_heads):
            kv_head = head // (config.n_heads // config.num_kv_heads)
            for i in range(len(x)):
                mine = rotated(
                    q[i, head * config.head_dim : (head + 1) * config.head_dim],
                    i,
                    getattr(block, "q_norm", None),
                )
                scores = [
                    float(
                        mine
                        @ rotated(
                            k[j, kv_head * config.head_dim : (kv_head + 1) * config.head_dim],
                            j,
                            getattr(block, "k_norm", None),
                        )
                    )
                    / config.head_dim**0.5
                    for j in range(len(x))
                ]
                shares = [math.exp(score - max(scores)) for score in scores]
                weights[head, i] = torch.tensor(shares, dtype=torch.float64) / sum(shares)
        found.append(weights)
    return found


@pytest.mark.parametrize(
    "fields",
    [{}, {"n_kv_heads": 2}, {"include_qkv_bias": True}, {"qk_norm": True, "head_width": 12}],
    ids=str,
)
def test_weights_are_those_of_a_softmax_written_out(make_model, fields):
    model = make_model(**fields)
    before = model(TOKENS)
    found = each_attention(model, TOKENS, lambda weights: weights[0].double())
    assert list(found) == ["blocks.0", "blocks.1"]
    bounds = [
        measured(lambda of, name=name: each_attention(of, TOKENS, lambda w: w[0])[name], model)
        for name in found
    ]
    for weights, expected, bound in zip(found.values(), written_out(model, TOKENS), bounds):
        torch.testing.assert_close(weights, expected, atol=bound, rtol=0)
    assert torch.equal(model(TOKENS), before)
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_are_removed_where_a_measure_fails(make_model):
    model = make_model()
    with pytest.raises(ZeroDivisionError):
        each_attention(model, TOKENS, lambda weights: 1 / 0)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_blocks_of_a_second_tower_are_named_apart(make_model):
    config = make_model(n_layers=AFTER_LAYERS[-1] + 1).config
    model = BiTowerLLaDA(config)
    initialise(model, torch.Generator().manual_seed(0))
    found = each_attention(model.eval(), TOKENS, lambda weights: tuple(weights.shape))
    assert sum(name.startswith("blocks_upm.") for name in found) == len(AFTER_LAYERS)
    assert len(found) == config.n_layers + len(AFTER_LAYERS)
    assert set(found.values()) == {(1, 4, 12, 12)}


def test_summaries_of_uniform_and_of_fixed_attention_have_closed_forms():
    length, prompt = 8, 3
    uniform = attention_statistics(torch.full((1, 2, length, length), 1 / length), prompt)
    for group, queries in (("prompt", range(prompt)), ("masked", range(prompt, length))):
        assert uniform[group].entropy.tolist() == pytest.approx([math.log(length)] * 2)
        assert uniform[group].to_prompt.tolist() == pytest.approx([prompt / length] * 2)
        distance = sum(abs(i - j) for i in queries for j in range(length)) / length / len(queries)
        assert uniform[group].distance.tolist() == pytest.approx([distance] * 2)
    first = torch.zeros(1, 2, length, length)
    first[..., 0] = 1  # all look at the first token
    assert (attention_statistics(first, prompt)["masked"].entropy == 0).all()
    assert (attention_statistics(first, prompt)["masked"].to_prompt == 1).all()
    assert attention_statistics(first, prompt)["masked"].distance.tolist() == pytest.approx(
        [sum(range(prompt, length)) / (length - prompt)] * 2
    )


def test_summaries_are_means_over_prompts_and_heads(make_model):
    model, prompts = make_model(), [[1, 2, 3], [4, 5, 6, 7]]
    rows = summarise(model, prompts, 4, 39)
    each = [summarise(model, [prompt], 4, 39) for prompt in prompts]
    for row, one, two in zip(rows, *each):
        for field in ("entropy", "distance", "to_prompt"):
            assert (
                row[field]
                == pytest.approx((one[field] + two[field]) / 2)
                == pytest.approx(sum(row["heads"][field]) / 4)
            )
    assert [(row["block"], row["queries"]) for row in rows] == [
        (block, group) for block in ("blocks.0", "blocks.1") for group in ("prompt", "masked")
    ]


def test_agreement_counts_places_and_a_longer_answer_against_it():
    assert agreement([[1, 2, 3], [4]], [[1, 2, 3], [4]]) == 1
    assert agreement([[1, 2, 3]], [[1, 9]]) == pytest.approx(1 / 3)
    assert agreement([[]], [[]]) == 1


def test_settings_are_read_as_they_are_written():
    assert settings("steps=8; threshold=0.9,block_length=4;") == {
        "steps=8": {"steps": "8"},
        "threshold=0.9,block_length=4": {"threshold": "0.9", "block_length": "4"},
        "as given": {},
    }
    with pytest.raises(ValueError, match="compare='steps': expected NAME=VALUE"):
        settings("steps")


ONE = "block_length=16,sampling_method=fixed_length"
PADDING = "block_length=4,sampling_method=semi_ar_padding"
ORIGIN = "block_length=4,sampling_method=semi_ar_origin"
RANDOM, ADAPTIVE = "remasking=random", "threshold=0.9"


@pytest.mark.parametrize(
    "method, options, expected",
    [
        ("llada", {}, [ONE, PADDING, ORIGIN, RANDOM, ADAPTIVE]),
        # its own blocks of 4 are a default, which gives way
        ("llada_prm", {}, [ONE, PADDING, ORIGIN, RANDOM, ADAPTIVE]),
        ("llada_ups", {}, [ONE, PADDING, ORIGIN, RANDOM, ADAPTIVE]),
        ("llada", {"block_length": "4"}, [PADDING, ORIGIN, RANDOM, ADAPTIVE]),
        (
            "llada",
            {"block_length": "8"},
            [PADDING.replace("4", "8"), ORIGIN.replace("4", "8"), RANDOM, ADAPTIVE],
        ),
        ("llada", {"threshold": "0.9"}, [ONE, PADDING, ORIGIN, ADAPTIVE]),
        ("llada", {"threshold": "0.8"}, [ONE, PADDING, ORIGIN]),
        ("llada", {"revise": "true"}, [ONE, PADDING, ORIGIN, RANDOM]),
        ("llada", {"remasking": "random"}, [ONE, PADDING, ORIGIN, RANDOM]),
        ("llada", {"sampling_method": "semi_ar_origin"}, [ORIGIN, RANDOM, ADAPTIVE]),
        ("llada", {"steps": "2"}, [ONE, RANDOM, ADAPTIVE]),
    ],
)
def test_the_default_comparison_is_what_agrees_with_the_options_and_says_the_rest_in_one_line(
    capsys, caplog, method, options, expected
):
    engine = Engine(method, gen_length=16, device="cpu", **options)
    found = default_settings(engine)
    assert list(found) == expected
    for given in found.values():  # all are valid, and none overrides what was asked for
        engine.sampler_for(given)
    left = [
        name
        for name in (
            ONE,
            *(way.replace("4", options.get("block_length", "4")) for way in (PADDING, ORIGIN)),
            RANDOM,
            ADAPTIVE,
        )
        if name not in expected
    ]
    assert capsys.readouterr().err == (
        f"not compared, as the given options rule out {'; '.join(left)}\n" if left else ""
    )
    assert "overrides" not in caplog.text


def test_options_that_agree_with_no_setting_are_refused_by_the_settings():
    engine = Engine(
        gen_length=16,
        device="cpu",
        revise=True,
        remasking="low_confidence",
        sampling_method="semi_ar_padding",
        steps=2,
    )
    with pytest.raises(
        ValueError,
        match="nothing to compare: the given options rule out block_length=16.*: say what by "
        "--compare",
    ):
        default_settings(engine)


def test_the_report_has_every_file_and_costs_are_those_of_the_schedule(tmp_path, capsys):
    out = tmp_path / "out"
    compared = "steps=16; steps=4; steps=16,seed=3"
    assert (
        analyze.main(
            ["--output", str(out), "--num_prompts", "2", "--device", "cpu", "--compare", compared]
        )
        == 0
    )
    assert {path.name for path in out.iterdir()} == {
        "analyze.json",
        "table.md",
        "agreement.png",
        "attention.png",
    }
    report = json.loads((out / "analyze.json").read_text())
    assert {name: row["num_forwards"] for name, row in report["methods"].items()} == {
        "steps=16": 16,
        "steps=4": 4,
        "steps=16,seed=3": 16,
    }
    # greedy
    assert (
        report["agreement"]["steps=16"]["steps=16,seed=3"]
        == report["same_text"]["steps=16"]["steps=16,seed=3"]
        == 1
    )
    assert (
        report["agreement"]["steps=16"]["steps=4"] == report["agreement"]["steps=4"]["steps=16"] < 1
    )
    assert len(report["attention"]) == 2 * 4 and report["gen_length"] == 16
    assert (out / "table.md").read_text() == capsys.readouterr().out
    assert all(
        (out / name).read_bytes().startswith(b"\x89PNG")
        for name in ("agreement.png", "attention.png")
    )


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--prompt", "1", "--data", "x"], "prompt and data both say what the prompts are"),
        (["--num_prompts", "0"], "num_prompts must be at least 1"),
        (["--data", "absent.jsonl"], "absent.jsonl: no such data file"),
        (["--data", "{bad}"], "bad.jsonl:2: expected"),
        (
            ["--data", "{half}"],
            r"half.jsonl:2: not UTF-8 text: lone surrogate \ud800 at character 2, after 'b'",
        ),
        (
            ["--data", "{bytes}"],
            r"bytes.jsonl:2: not UTF-8 text: byte 0xff, or lone surrogate \udcff at character 14",
        ),
        (
            ["--prompt", "b\udcff"],
            r"not UTF-8 text: byte 0xff, or lone surrogate \udcff at character 2, after 'b'",
        ),
        (["--compare", "steps=3,threshhold=1"], "unknown sampler option 'threshhold'"),
        (
            ["--compare", "block_length=8,steps=3"],
            "steps (3) must be a multiple of the number of blocks (2",
        ),
        (["--pretrained", "{checkpoint}"], "give --prompt TEXT or --data"),
        (["--no_such_flag", "1"], "no_such_flag"),
        (["--output", "{full}"], "is not empty"),
    ],
)
def test_bad_input_ends_with_one_line_and_nothing_written(
    tmp_path, tiny_checkpoint, flags, message
):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": ""}\n')
    (tmp_path / "half.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b\\ud800"}\n')
    (tmp_path / "bytes.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": "b\xff"}\n')
    files = set(tmp_path.iterdir())
    places = {
        **{f"{{{path.stem}}}": path for path in files},
        "{checkpoint}": tiny_checkpoint,
        "{full}": tmp_path,
    }
    flags = [str(places.get(flag, flag)) for flag in flags]
    with pytest.raises(SystemExit) as exit_info:
        analyze.main(
            [*(["--output", str(tmp_path / "out")] if "--output" not in flags else []), *flags]
        )
    text = str(exit_info.value.code)
    assert text.startswith("error: ") and message in text and "\n" not in text
    assert set(tmp_path.iterdir()) == files


def test_prompts_of_a_file_are_answered_in_its_order(tmp_path, tiny_checkpoint):
    (tmp_path / "data.jsonl").write_text(
        '{"prompt": "12", "answer": "\u2028"}\n\n{"prompt": "345"}\n{"prompt": "6"}\n'
    )
    analyze.main(
        [
            "--output",
            str(tmp_path / "out"),
            "--pretrained",
            str(tiny_checkpoint),
            "--data",
            str(tmp_path / "data.jsonl"),
            "--num_prompts",
            "2",
            "--gen_length",
            "4",
            "--compare",
            ";steps=2",
            "--device",
            "cpu",
        ]
    )
    report = json.loads((tmp_path / "out" / "analyze.json").read_text())
    assert report["prompts"] == ["12", "345"] and list(report["methods"]) == ["as given", "steps=2"]
    assert all(len(row["answers"]) == 2 for row in report["methods"].values())
