"""Modules are called: adapters, hooks, parametrizations and offloaded weights have their effect."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from llada_plugins.diffusion.denoiser import model_denoiser
from llada_plugins.likelihood.estimate import log_likelihood
from llada_plugins.methods.policy_head import PolicyHead, policy_denoiser
from llada_plugins.methods.router import Router, RouterConfig
from llada_plugins.methods.routing import RoutedLLaDA, routed
from llada_plugins.models.bitower import BiTowerLLaDA
from llada_plugins.models.fingerprint import backbone_fingerprint
from llada_plugins.models.folder import TINY
from llada_plugins.models.initial import empty_like, initialise
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.loading import save_model
from llada_plugins.models.submodules import is_plain_linear
from llada_plugins.rewards.process_reward_model import PRMConfig, load_prm
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.generate import generate

pytestmark = pytest.mark.floats

IDS = torch.tensor([[5, 9, 2, 39, 39, 7]])
PROMPTS = [[1, 2, 3], [4, 5]]
PAIRS = [([1, 2, 3], [4, 5, 6]), ([7], [8, 9])]
CONFIG = SamplerConfig(gen_length=8, steps=4)
MASK = 39


def head_of(model: LLaDA) -> nn.Module:
    return model.embedding if model.config.weight_tying else model.model["transformer"]["ff_out"]


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Shouting(nn.Linear):
    """A subclass with arithmetic of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def adapt(model: LLaDA, targets: str) -> None:
    """LoRA in place, as peft injects it, with a B that is not zero."""
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=4, target_modules=targets), model)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    model.eval().requires_grad_(False)


def all_linear(model: LLaDA) -> None:
    adapt(model, r".*\.(q_proj|k_proj|v_proj|attn_out|ff_proj|up_proj|ff_out)")


def embedding_adapter(model: LLaDA) -> None:
    adapt(model, r".*\.wte")


def doubling_hook(model: LLaDA) -> None:
    head_of(model).register_forward_hook(lambda module, given, output: 2 * output)


def doubling_pre_hook(model: LLaDA) -> None:
    head_of(model).register_forward_pre_hook(lambda module, given: (2 * given[0],))


def own_forward(model: LLaDA) -> None:
    head = head_of(model)
    before = head.forward
    head.forward = lambda x: 2 * before(x)


def parametrized(model: LLaDA) -> None:
    parametrize.register_parametrization(head_of(model), "weight", Doubled())


def subclass(model: LLaDA) -> None:
    head_of(model).__class__ = Shouting


def pruned(model: LLaDA) -> None:
    prune.l1_unstructured(head_of(model), "weight", amount=0.5)


CHANGES = [
    all_linear,
    embedding_adapter,
    doubling_hook,
    doubling_pre_hook,
    own_forward,
    parametrized,
    subclass,
    pruned,
]


def with_gradients(model: LLaDA) -> Tensor:
    """Logits in the mode in which nothing was ever bypassed."""
    with torch.enable_grad():
        return model(IDS).detach()


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_logits_without_gradients_are_those_with_them_whatever_was_done_to_a_module(
    make_model, change
):
    model = make_model()
    plain = model(IDS)
    change(model)
    expected = with_gradients(model)
    with torch.no_grad():
        found = model(IDS)
    with torch.inference_mode():
        inferred = model(IDS)
    # the same sums in another order of the same products: fp32, at most 48 of them
    bound = 48 * torch.finfo(torch.float32).eps * float(expected.abs().max() + plain.abs().max())
    assert (found - expected).abs().max() <= bound and torch.equal(found, inferred)
    assert (found - plain).abs().max() > 1000 * bound  # the change is one


@pytest.mark.parametrize(
    "change", [doubling_hook, own_forward, parametrized, subclass, doubling_pre_hook]
)
def test_a_head_that_doubles_gives_the_likelihood_of_doubled_logits(make_model, change):
    model = make_model()

    def doubled(canvas, window):
        prediction = plain(canvas, window)
        return prediction._replace(
            logits_at=lambda at, rows=None: 2 * prediction.logits_at(at, rows)
        )

    plain = model_denoiser(model)
    expected = log_likelihood(model, PAIRS, estimator="chain", denoise=doubled)
    sampled = generate(model, PROMPTS, CONFIG, denoise=doubled)
    change(model)
    found = log_likelihood(model, PAIRS, estimator="chain")
    # a factor of two is exact in floating point, so every number is
    assert [each.value for each in found] == [each.value for each in expected]
    assert generate(model, PROMPTS, CONFIG) == sampled


def test_a_hook_for_all_modules_sees_the_head(make_model):
    model, seen = make_model(), []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, given, output: seen.append(module)
    )
    try:
        model.head(torch.ones(1, 32))
    finally:
        handle.remove()
    assert seen == [head_of(model)]


@pytest.mark.parametrize("targets", [r".*\.ff_out", r".*\.wte"])
@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_counts_as_much_as_the_same_merged_into_the_weights(make_model, tied, targets):
    model = make_model(weight_tying=tied)
    before = model(IDS)
    adapt(model, targets)
    found = model(IDS)
    merged = make_model(weight_tying=tied)
    state = merged.state_dict()
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            state[f"{name}.weight"] += module.get_delta_weight("default")
    expected = merged(IDS)
    # merged weights round once more: eps of a weight, in sums of at most 48 products,
    # in 3 layers
    bound = 3 * 48 * torch.finfo(torch.float32).eps * float(expected.abs().max())
    assert (found - expected).abs().max() <= bound < float((found - before).abs().max()) / 100


def test_hooks_on_an_embedding_change_what_is_looked_up_and_not_the_head_that_shares_its_rows(
    make_model,
):
    model = make_model(weight_tying=True)
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    before = model.head(hidden)
    model.embedding.register_forward_hook(lambda module, given, output: 2 * output)
    assert torch.equal(model.head(hidden), before)


def test_the_plain_head_is_still_computed_in_parts(make_model, monkeypatch):
    model, calls = make_model(), []
    monkeypatch.setattr(
        "llada_plugins.models.llada.by_parts",
        lambda x, weight: calls.append(weight) or x @ weight.T,
    )
    with torch.no_grad():
        model(IDS)
    assert len(calls) == 1 and calls[0] is head_of(model).weight


@pytest.mark.parametrize(
    "x, plain",
    [
        (torch.ones(1, 4), True),
        (torch.ones(1, 4, device="meta"), False),
        (torch.ones(1, 4, dtype=torch.bfloat16), False),
    ],
)
def test_a_weight_that_lies_elsewhere_is_not_read(x, plain):
    assert is_plain_linear(nn.Linear(4, 3), x) is plain


# ---- routers


def router_of(model: LLaDA, **options) -> Router:
    torch.manual_seed(4)
    config = RouterConfig(
        d_model=model.config.d_model, mode="residual", max_positions=64, **options
    )
    router = Router(config)
    for parameter in router.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape)
    return router.eval().requires_grad_(False)


def test_a_router_starts_from_the_adapted_mask_embedding(make_model):
    model = make_model()
    router = router_of(model)
    embedding_adapter(model)
    found = RoutedLLaDA(model, router, MASK)(IDS, prompt_lengths=torch.tensor([3]))
    merged = make_model()
    merged.embedding.weight.data += model.embedding.get_delta_weight("default")
    expected = RoutedLLaDA(merged, router, MASK)(IDS, prompt_lengths=torch.tensor([3]))
    bound = 3 * 48 * torch.finfo(torch.float32).eps * float(expected.abs().max())
    assert (found - expected).abs().max() <= bound


# ---- offloaded weights


def bi_tower(make_model) -> LLaDA:
    config = make_model(d_model=16, n_heads=2, n_layers=31, mlp_hidden_size=24).config
    model = BiTowerLLaDA(config)
    initialise(model, torch.Generator().manual_seed(2))
    return model.eval().requires_grad_(False)


MODELS = {
    "plain": lambda make: make(),
    "tied": lambda make: make(weight_tying=True),
    "biases": lambda make: make(include_bias=True),
    "bi-tower": bi_tower,
}


def in_memory(model: LLaDA, folder) -> None:
    cpu_offload(model, execution_device=torch.device("cpu"))


def on_disk(model: LLaDA, folder) -> None:
    disk_offload(model, str(folder), execution_device=torch.device("cpu"))


def outcomes(model: LLaDA, *, denoise: Callable | None = None) -> tuple:
    options = {} if denoise is None else {"denoise": denoise}
    return (
        generate(model, PROMPTS, CONFIG, **options),
        generate(
            model, PROMPTS, SamplerConfig(gen_length=8, block_length=4, cache="dual"), **options
        ),
        log_likelihood(model, PAIRS, mc_num=4, **options),
    )


@pytest.mark.parametrize(
    "offload, name",
    [*((in_memory, name) for name in MODELS), (on_disk, "plain"), (on_disk, "tied")],
)
def test_an_offloaded_model_gives_the_answers_and_likelihoods_of_the_same_model_in_memory(
    make_model, tmp_path, offload, name
):
    model = MODELS[name](make_model)
    expected = outcomes(model)
    offload(model, tmp_path)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.device == torch.device("cpu") and model.dtype == torch.float32
    assert outcomes(model) == expected


@pytest.mark.parametrize("part", ["head", "router"])
def test_parts_beside_an_offloaded_model_give_the_same_answers(make_model, tmp_path, part):
    model = make_model()
    torch.manual_seed(5)
    head, router = PolicyHead(32, 8), router_of(model, blocks=2)
    blocks = model.model["transformer"]["blocks"]
    denoise = policy_denoiser(model, head)
    if part == "router":
        denoise = routed(model_denoiser(model), router, model.embedding, MASK, blocks)
    expected = outcomes(model, denoise=denoise)
    in_memory(model, tmp_path)
    assert outcomes(model, denoise=denoise) == expected


def test_an_adapted_model_that_is_offloaded_gives_the_same_answers(make_model, tmp_path):
    model = make_model()
    all_linear(model)
    expected = outcomes(model)
    in_memory(model, tmp_path)
    assert outcomes(model) == expected


def test_an_embeddings_adapter_that_is_offloaded_is_refused_by_name(make_model, tmp_path):
    model = make_model()
    embedding_adapter(model)
    in_memory(model, tmp_path)
    with pytest.raises(ValueError, match="merge the adapter .* before offloading"):
        generate(model, PROMPTS, CONFIG)


def test_an_offloaded_process_reward_model_gives_the_same_scores(tmp_path):
    scorer = load_prm(PRMConfig(prm=str(TINY / "prm")), "cpu")
    solutions = [("1234", ["1234", "3412"]), ("12", ["4321"])]
    expected = scorer.score(solutions)
    in_memory(scorer.model, tmp_path)
    assert scorer.score(solutions) == expected


@pytest.mark.parametrize(
    "use",
    [
        lambda model, folder: generate(model, PROMPTS, CONFIG),
        lambda model, folder: log_likelihood(model, PAIRS, mc_num=2),
    ],
    ids=["generate", "log_likelihood"],
)
def test_a_model_without_weights_is_refused_by_name(make_model, tmp_path, use):
    with pytest.raises(
        ValueError,
        match="weights are on the meta device, and no hook of accelerate .*: load it by load_model",
    ):
        use(empty_like(make_model()), tmp_path)


@pytest.mark.parametrize(
    "use, purpose",
    [
        (lambda model, folder: save_model(model, folder), "a checkpoint"),
        (
            lambda model, folder: backbone_fingerprint(model),
            "the fingerprint that ties a part to its backbone",
        ),
    ],
    ids=["save", "fingerprint"],
)
def test_what_reads_all_weights_refuses_an_offloaded_model_by_name(
    make_model, tmp_path, use, purpose
):
    model = make_model()
    in_memory(model, tmp_path)
    with pytest.raises(ValueError, match=f"tensors are offloaded .*, and {purpose} reads them all"):
        use(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
