"""Published option names where a checkpoint comes with the sampler that has them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from llada_plugins.engine.engine import Engine, Request
from llada_plugins.models.loading import save_model
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.generate import generate
from llada_plugins.sampling.published import ALGORITHMS, native

pytestmark = pytest.mark.floats

DREAM = {"schedule": "dream", "confidence_of": "filtered"}


@pytest.fixture(scope="module")
def dream(make_model, tiny_checkpoint, tmp_path_factory) -> Path:
    """A random Dream with the byte tokenizer; for reading only."""
    folder = tmp_path_factory.mktemp("dream")
    shutil.copytree(tiny_checkpoint, folder, dirs_exist_ok=True)
    own = Engine(pretrained=str(tiny_checkpoint)).model.config
    model = make_model(
        vocab_size=own.vocab_size,
        max_sequence_length=128,
        mask_token_id=own.mask_token_id,
        eos_token_id=own.eos_token_id,
        n_kv_heads=2,
        include_qkv_bias=True,
        rope_full_precision=False,
        family="dream",
    )
    save_model(model, folder)
    return folder


def options_of(engine: Engine, **asked) -> dict:
    """Which options of a request's sampler are not the defaults."""
    sampler = engine.sampler_for(asked)
    return {
        name: getattr(sampler, name)
        for name in SamplerConfig.__dataclass_fields__
        if getattr(sampler, name) != getattr(SamplerConfig(early_stop=True), name)
    }


@pytest.mark.parametrize(
    "given, expected",
    [
        (dict(alg="entropy"), {**DREAM, "confidence_source": "entropy"}),
        (dict(alg="maskgit_plus"), {**DREAM, "confidence_source": "tps_prob"}),
        (dict(alg="topk_margin", top_p=0.9), dict(DREAM, confidence_source="margin", top_p=0.9)),
        (
            dict(alg="origin", eps=0.01),
            dict(DREAM, schedule="independent", confidence_source="random", schedule_eps=0.01),
        ),
        (
            dict(alg="confidence_threshold", threshold=0.9),
            dict(confidence_of="filtered", confidence_source="tps_prob", threshold=0.9, paced=True),
        ),
        (
            dict(alg="confidence_threshold", threshold=0.9, cache="dual"),
            dict(
                confidence_of="filtered", confidence_source="tps_prob", threshold=0.9, cache="dual"
            ),
        ),
        (dict(max_new_tokens=16, diffusion_steps=8), dict(gen_length=16, steps=8)),
        # what stands beside alg goes before what it implies
        (
            dict(alg="entropy", schedule="llada"),
            dict(confidence_source="entropy", confidence_of="filtered"),
        ),
    ],
    ids=str,
)
def test_dreams_options_mean_its_sampler_of_the_model_and_of_a_request(dream, given, expected):
    assert options_of(Engine(pretrained=str(dream), **given)) == expected
    assert options_of(Engine(pretrained=str(dream)), **given) == expected


def test_published_and_own_names_give_the_same_answers(dream):
    theirs = Engine(
        pretrained=str(dream), alg="entropy", max_new_tokens=12, diffusion_steps=6, top_p=0.9
    )
    ours = Engine(
        pretrained=str(dream),
        confidence_source="entropy",
        gen_length=12,
        steps=6,
        top_p=0.9,
        **DREAM,
    )
    texts = []
    for engine in (theirs, ours):
        requests = [Request("2+3=", engine.sampler), Request("a", engine.sampler)]
        texts.append([found.text for _, found in sorted(engine.generate(requests))])
    assert texts[0] == texts[1]
    assert theirs.sampler == ours.sampler


def test_an_a2d_checkpoints_options_mean_dllms_sampler():
    assert native(dict(max_new_tokens=20, block_size=8, steps=20), "mdlm") == dict(
        gen_length=20, block_length=8, steps=20, schedule="mdlm", last_block="rest"
    )
    assert native(dict(gen_length=20, steps=20), "mdlm") == dict(gen_length=20, steps=20)


@pytest.mark.parametrize("where", ["model", "request"])
@pytest.mark.parametrize(
    "given, message",
    [
        (dict(alg="entropy"), r"alg is an option of Dream's sampler, .* 'confidence_source'\?$"),
        (dict(eps=0.1), r"eps is an option of Dream's sampler, .* did you mean 'schedule_eps'\?$"),
        (dict(block_size=8), r"block_size is an option of dllm's sampler, .* 'block_length'\?$"),
    ],
    ids=str,
)
def test_a_published_name_of_another_sampler_is_refused_in_one_line(
    tiny_checkpoint, where, given, message
):
    with pytest.raises(ValueError, match=message) as caught:
        if where == "model":
            Engine(pretrained=str(tiny_checkpoint), **given)
        else:
            Engine(pretrained=str(tiny_checkpoint)).sampler_for(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(alg="greedy"), "^alg must be one of origin, maskgit_plus, .*, got 'greedy'$"),
        (dict(alg="confidence_threshold"), "^alg=confidence_threshold needs threshold"),
        (
            dict(alg="entropy", remasking="random"),
            "^alg and remasking are two names of one option: give one$",
        ),
        (
            dict(alg="entropy", confidence_source="margin"),
            "^alg and confidence_source are two names of one option: give one$",
        ),
        (
            dict(max_new_tokens=8, gen_length=8),
            "^max_new_tokens and gen_length are two names of one option: give one$",
        ),
        (dict(block_size=8), "^block_size is an option of dllm's sampler"),
    ],
    ids=str,
)
def test_a_wrong_published_option_of_a_dream_is_told_before_weights_are_read(given, message):
    with pytest.raises(ValueError, match=message):
        native(given, "dream")


def test_every_alg_is_a_sampler_that_can_be_built():
    for alg in ALGORITHMS:
        more = {"threshold": 0.9} if alg == "confidence_threshold" else {}
        assert SamplerConfig(**native({"alg": alg, **more}, "dream"))


def test_the_published_shift_cache_is_refused_where_logits_are_not_shifted(tiny_checkpoint, dream):
    options = dict(cache="dual", shift_cache="published", threshold=0.9)
    with pytest.raises(ValueError, match="shift_cache=published is for models whose logits are"):
        Engine(pretrained=str(tiny_checkpoint), **options)
    assert Engine(pretrained=str(dream), **options).sampler.shift_cache == "published"


def test_a_dreams_answers_use_logits_of_the_column_to_the_left(dream):
    """One token: the best one by the logits of the prompt's last."""
    engine = Engine(pretrained=str(dream))
    ids = engine.encode("abc")
    tokens = torch.tensor([[*ids, engine.special.mask]])
    logits = engine.model(tokens)[0, -2]
    logits[engine.special.mask] = -torch.inf
    [found] = generate(engine.model, [ids], SamplerConfig(gen_length=1), special=engine.special)
    assert found.answer == [int(logits.argmax())]


def test_both_harnesses_take_dreams_names_from_a_request(dream):
    pytest.importorskip("lm_eval")
    from llada_plugins.harness.lmeval_requests import read_request
    from llada_plugins.harness.opencompass_options import sampler_options

    engine = Engine(pretrained=str(dream))
    asked = dict(alg="entropy", eps=0.01, diffusion_steps=8)
    expected = dict(DREAM, confidence_source="entropy", schedule_eps=0.01, steps=8, gen_length=16)
    of_lm_eval = read_request(engine, "a", {"until": [], "max_gen_toks": 16, **asked}).sampler
    of_opencompass = engine.sampler_for(sampler_options(asked, engine.given), 16)
    for sampler in (of_lm_eval, of_opencompass):
        assert {name: getattr(sampler, name) for name in expected} == expected
