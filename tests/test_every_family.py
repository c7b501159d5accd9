"""Every family can do everything: what users do with a checkpoint, run on each of FAMILIES.

Checkpoints are the recorded ones, or made of these. What a family cannot do is a row of
CANNOT that says why.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llada_plugins.engine.engine import Engine, Request
from llada_plugins.files.json_files import read_json
from llada_plugins.likelihood.estimate import log_likelihood
from llada_plugins.methods.policy_head import PolicyHead, save_policy
from llada_plugins.methods.router import Router, RouterConfig, save_router
from llada_plugins.models.families import FAMILIES
from llada_plugins.models.fingerprint import backbone_fingerprint
from llada_plugins.models.folder import TINY, read_config
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.loading import load_model, save_model
from llada_plugins.models.lora import PREFIX, WEIGHTS
from tests.family_checkpoints import retensor, with_tokenizer
from tests.tolerance import likelihood_error, measured
from training import merge, remask_sft, router_sft, sft

pytestmark = pytest.mark.floats

PROMPTS = ["ab", "a longer prompt", "c"]
DECODING = dict(gen_length=8, steps=4, block_length=4, early_stop=False, device="cpu")
TRAINING = [
    *("--max_steps", "2", "--per_device_train_batch_size", "2", "--logging_steps", "1"),
    *("--learning_rate", "1e-2", "--warmup_steps", "0", "--save_strategy", "no", "--use_cpu"),
]


# Their networks are those of another row with other switches: make test-slow uses them too.
SIBLINGS = (
    "a2d_llama",
    "a2d_qwen2",
    "illada",
    "llada_moe_fused",
    "sdar",
    "sdar_moe",
    "llada2_stacked",
    "fast_dllm_v2",
)
ROWS = [
    pytest.param(name, marks=[pytest.mark.slow] if name in SIBLINGS else []) for name in FAMILIES
]


@pytest.fixture(scope="module", params=ROWS)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def checkpoint(family, tmp_path_factory) -> Path:
    """A checkpoint of the family with the byte tokenizer; for reading only."""
    return with_tokenizer(family, tmp_path_factory.mktemp(family) / "checkpoint")


def load(folder: Path, **options: str | Path) -> LLaDA:
    return load_model(folder, device="cpu", dtype="float32", **options)


def logits(model: LLaDA) -> Tensor:
    return model(torch.arange(40).view(2, 20))


def forwards(engine: Engine, found: list[int], revises: bool = False) -> list[int]:
    """What decoding spends on each of PROMPTS: two steps a block.

    Blocks of a model that attends by blocks are counted from the prompt's first token, and
    one with a single mask takes one step, unless a step may mask tokens again. Under a
    threshold, which LLaDA2's sampler has, it is what was `found`, within one step a block
    and one (if tokens may be masked again, two) a mask.
    """
    if engine.model.config.attention == "full":
        return [4] * len(PROMPTS)
    expected = []
    for prompt, number in zip(PROMPTS, found):
        tail = len(engine.encode(prompt)) % 4
        masks = [4 - tail] + [4] * (math.ceil((tail + 8) / 4) - 1)
        if engine.sampler.adaptive:
            most = sum(masks) + revises * len(masks)
            expected.append(min(max(number, len(masks)), most))
        else:
            expected.append(sum(2 if revises else min(each, 2) for each in masks))
    return expected


def answers(engine: Engine) -> list[tuple[str, int]]:
    requests = [Request(prompt, engine.sampler) for prompt in PROMPTS]
    found = dict(engine.generate(requests, batch_size=len(PROMPTS)))
    return [(found[number].text, found[number].num_forwards) for number in range(len(PROMPTS))]


# ---- what users do; each gets a checkpoint, an empty folder and a file of training data


def account_for_every_tensor(checkpoint: Path, out: Path, data: Path) -> None:
    folder = shutil.copytree(checkpoint, out / "less")
    name = sorted(load_file(folder / "model.safetensors"))[-2]
    retensor(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(ValueError, match=f"missing {name}") as error:
        load(folder)
    assert "\n" not in str(error.value)


def save_and_load(checkpoint: Path, out: Path, data: Path) -> None:
    model = load(checkpoint)
    save_model(model, out / "saved")
    before, after = (load_file(each / "model.safetensors") for each in (checkpoint, out / "saved"))
    assert before.keys() == after.keys()
    assert read_json(out / "saved" / "config.json") == read_json(checkpoint / "config.json")
    assert torch.equal(logits(load(out / "saved")), logits(model))


def pad_a_batch(checkpoint: Path, out: Path, data: Path) -> None:
    model = load(checkpoint)
    tokens = torch.arange(60).view(3, 20)
    mask = torch.arange(20) >= torch.tensor([[0], [3], [11]])

    def real(of: LLaDA) -> Tensor:
        return of(tokens, mask)[mask]

    alone = torch.cat([model(row[kept][None])[0] for row, kept in zip(tokens, mask)])
    torch.testing.assert_close(real(model), alone, atol=measured(real, model), rtol=0)


def decode_in_a_batch(checkpoint: Path, out: Path, data: Path) -> None:
    engine = Engine(pretrained=str(checkpoint), **DECODING)
    together = answers(engine)
    numbers = [number for _, number in together]
    assert numbers == forwards(engine, numbers)
    for prompt, expected in zip(PROMPTS, together):
        ((_, alone),) = engine.generate([Request(prompt, engine.sampler)])
        assert (alone.text, alone.num_forwards) == expected


def decode_in_lm_eval(checkpoint: Path, out: Path, data: Path) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from llada_plugins import lmeval_models

    model = lmeval_models.LLaDA(pretrained=str(checkpoint), **DECODING)
    requests = [
        Instance("generate_until", {}, (prompt, {}), number)
        for number, prompt in enumerate(PROMPTS)
    ]
    engine = Engine(pretrained=str(checkpoint), **DECODING)
    assert model.generate_until(requests) == [text for text, _ in answers(engine)]


def decode_in_opencompass(checkpoint: Path, out: Path, data: Path) -> None:
    pytest.importorskip("opencompass")
    from llada_plugins import opencompass_models

    model = opencompass_models.LLaDA(str(checkpoint), **DECODING)
    engine = Engine(pretrained=str(checkpoint), **DECODING)
    assert model.generate(PROMPTS, 8) == [text for text, _ in answers(engine)]


def score_answers(checkpoint: Path, out: Path, data: Path) -> None:
    model = load(checkpoint)
    pairs = [([65, 66, 67], [68, 69, 70]), ([80], [81, 82])]
    exact = log_likelihood(model, pairs, estimator="exact")
    counted = log_likelihood(model, pairs, estimator="count", mc_num=8)  # enumerates too
    for (_, answer), one, other in zip(pairs, exact, counted):
        assert one.value < 0
        assert abs(one.value - other.value) <= likelihood_error(model, len(answer))


def keep_keys_and_values(checkpoint: Path, out: Path, data: Path) -> None:
    engine = Engine(pretrained=str(checkpoint), **DECODING)
    plain = answers(engine)
    if engine.model.config.attention == "block_causal":  # they are kept unless one says no
        assert answers(Engine(pretrained=str(checkpoint), cache="none", **DECODING)) == plain
        with pytest.raises(ValueError, match="cache=prefix freezes what later blocks change"):
            Engine(pretrained=str(checkpoint), cache="prefix", **DECODING)
        return
    for cache in ("prefix", "dual"):
        cached = answers(Engine(pretrained=str(checkpoint), cache=cache, **DECODING))
        assert [number for _, number in cached] == [number for _, number in plain]
        # a full pass at every step leaves nothing of the approximation
        fresh = Engine(pretrained=str(checkpoint), cache=cache, cache_refresh=1, **DECODING)
        assert answers(fresh) == plain


def trust_a_policy_head(checkpoint: Path, out: Path, data: Path) -> None:
    model = load(checkpoint)
    torch.manual_seed(0)
    save_policy(PolicyHead(model.config.d_model, 8), out / "ups", backbone_fingerprint(model))
    engine = Engine("llada_ups", pretrained=str(checkpoint), ups=str(out / "ups"), **DECODING)
    numbers = [number for _, number in answers(engine)]
    assert numbers == forwards(engine, numbers, revises=True)


def seed_by_a_router(checkpoint: Path, out: Path, data: Path) -> None:
    model = load(checkpoint)
    torch.manual_seed(0)
    router = Router(RouterConfig(d_model=model.config.d_model, heads=2))
    save_router(router, out / "router", backbone_fingerprint(model))
    engine = Engine("llada_ala", pretrained=str(checkpoint), router=str(out / "router"), **DECODING)
    numbers = [number for _, number in answers(engine)]
    assert numbers == forwards(engine, numbers)


def be_judged(checkpoint: Path, out: Path, data: Path) -> None:
    options = dict(pretrained=str(checkpoint), prm=str(TINY / "prm"), **DECODING)
    engine = Engine("llada_prm", **options)
    requests = [Request(prompt, engine.sampler) for prompt in PROMPTS]
    assert any(each.num_prm_calls for _, each in engine.generate(requests))


def quantise(checkpoint: Path, out: Path, data: Path) -> None:
    pytest.importorskip("torchao")
    plain, small = load(checkpoint), load(checkpoint, quantize="int8")
    assert backbone_fingerprint(small) == backbone_fingerprint(plain)
    off = (logits(small) - logits(plain)).abs().max()
    assert 0 < off < logits(plain).abs().max()


def train_all_weights(checkpoint: Path, out: Path, data: Path) -> None:
    given = ["--model", str(checkpoint), "--data", str(data), "--output_dir", str(out / "sft")]
    sft.main([*given, *TRAINING])
    assert read_config(out / "sft").family == read_config(checkpoint).family
    before, after = (load_file(each / "model.safetensors") for each in (checkpoint, out / "sft"))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def train_adapters(checkpoint: Path, out: Path, data: Path) -> None:
    given = ["--model", str(checkpoint), "--data", str(data), "--output_dir", str(out / "lora")]
    sft.main([*given, *TRAINING, "--lora", "--lora_r", "2"])
    merged = ["--model", str(checkpoint), "--peft", str(out / "lora")]
    merge.main([*merged, "--output", str(out / "merged")])
    tuned = logits(load(checkpoint, peft=out / "lora"))
    assert torch.equal(tuned, logits(load(out / "merged")))
    assert not torch.equal(tuned, logits(load(checkpoint)))
    saved = load_file(out / "lora" / WEIGHTS)
    adapted = {name.removeprefix(PREFIX).partition(".lora_")[0] for name in saved}
    stored = {name.removesuffix(".weight") for name in load_file(checkpoint / "model.safetensors")}
    assert adapted <= stored


def train_a_policy_head(checkpoint: Path, out: Path, data: Path) -> None:
    given = ["--model", str(checkpoint), "--data", str(data), "--output_dir", str(out / "head")]
    remask_sft.main([*given, *TRAINING])
    engine = Engine("llada_ups", pretrained=str(checkpoint), ups=str(out / "head"), **DECODING)
    numbers = [number for _, number in answers(engine)]
    assert numbers == forwards(engine, numbers, revises=True)


def train_a_router(checkpoint: Path, out: Path, data: Path) -> None:
    given = ["--model", str(checkpoint), "--data", str(data), "--output_dir", str(out / "router")]
    router_sft.main([*given, *TRAINING, "--router_heads", "2"])
    engine = Engine("llada_ala", pretrained=str(checkpoint), router=str(out / "router"), **DECODING)
    numbers = [number for _, number in answers(engine)]
    assert numbers == forwards(engine, numbers)


USES: list[Callable[[Path, Path, Path], None]] = [
    account_for_every_tensor,
    save_and_load,
    pad_a_batch,
    decode_in_a_batch,
    decode_in_lm_eval,
    decode_in_opencompass,
    score_answers,
    keep_keys_and_values,
    trust_a_policy_head,
    seed_by_a_router,
    be_judged,
    quantise,
    train_all_weights,
    train_adapters,
    train_a_policy_head,
    train_a_router,
]
# what a family cannot do, and what it is told
CANNOT: dict[tuple[str, Callable[[Path, Path, Path], None]], str] = {
    # a bi-tower scores every position itself
    ("remedi", trust_a_policy_head): "this checkpoint has RemeDi's own policy stream",
    ("remedi", train_a_policy_head): "a policy stream of its own, .* give --joint",
}
# a router seeds the masks of a whole answer, and these have masks in one block alone
CANNOT |= {
    (name, train_a_router): "has block-causal attention"
    for name, row in FAMILIES.items()
    if row.attentions == ("block_causal",)
}


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_a_family_can(family, checkpoint, tmp_path, sudokus, use):
    if (family, use) not in CANNOT:
        use(checkpoint, tmp_path, sudokus)
        return
    with pytest.raises((ValueError, SystemExit), match=CANNOT[family, use]):
        use(checkpoint, tmp_path, sudokus)
