"""The transformer: equal to transformers' Llama and Qwen2 with the same weights. For
the published code see test_golden.py.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llada_plugins.models import layer
from llada_plugins.models.initial import initialise
from llada_plugins.models.layer import attend
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.past import Past
from tests.tolerance import forward_error, measured, rounding, twice_naive

pytestmark = pytest.mark.floats

# LLaDAConfig fields -> (transformers class, its config fields): every variant that a
# switch of the config selects
TWINS = {
    "plain": ({}, ("Llama", {})),
    "grouped_query": (dict(n_kv_heads=2), ("Llama", dict(num_key_value_heads=2))),
    "tied_head": (dict(weight_tying=True), ("Llama", dict(tie_word_embeddings=True))),
    "larger_table": (dict(embedding_size=48), ("Llama", dict(vocab_size=48))),
    "qkv_bias": (dict(include_qkv_bias=True), ("Qwen2", {})),
    "bias": (dict(include_bias=True), ("Llama", dict(attention_bias=True, mlp_bias=True))),
    "qk_norm": (
        dict(qk_norm=True, head_width=24, n_kv_heads=2),
        ("Qwen3", dict(head_dim=24, num_key_value_heads=2)),
    ),
    "experts": (
        dict(qk_norm=True, num_experts=6, experts_per_token=2, mlp_hidden_size=16),
        (
            "Qwen3Moe",
            dict(
                num_experts=6,
                num_experts_per_tok=2,
                norm_topk_prob=False,
                decoder_sparse_step=1,
                mlp_only_layers=[],
                moe_intermediate_size=16,
            ),
        ),
    ),
}
RENAMED = {
    "wte": "embed_tokens",
    "blocks": "layers",
    "ln_f": "norm",
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "mixture.router.weight": "mlp.gate.weight",
    "mixture.gate_up.weight": "mlp.experts.gate_up_proj",
    "mixture.down.weight": "mlp.experts.down_proj",
}


def published(name: str) -> str:
    """Transformers' name of a tensor of ours."""
    head, _, rest = name.partition(".")
    if head == "ff_out":
        return f"lm_head.{rest}"
    if head != "blocks":
        return f"model.{RENAMED[head]}.{rest}"
    number, _, place = rest.partition(".")
    if place in RENAMED:  # of a mixture
        return f"model.layers.{number}.{RENAMED[place]}"
    module, leaf = place.split(".")
    return f"model.layers.{number}.{RENAMED[module]}.{leaf}"


def twin(model: LLaDA, kind: str, fields: dict) -> torch.nn.Module:
    """The same weights in a transformers model with bidirectional attention."""
    transformers = pytest.importorskip(
        "transformers", "5.2.0", reason="is_causal=False is honoured since transformers 5.2"
    )
    config = model.config
    config = getattr(transformers, f"{kind}Config")(
        **{
            **dict(
                hidden_size=config.d_model,
                intermediate_size=config.mlp_hidden_size,
                num_hidden_layers=config.n_layers,
                vocab_size=config.vocab_size,
                num_attention_heads=config.n_heads,
                num_key_value_heads=config.n_heads,
                rms_norm_eps=config.rms_norm_eps,
                rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
                tie_word_embeddings=False,
                is_causal=False,
            ),
            **fields,
        }
    )
    other = getattr(transformers, f"{kind}ForCausalLM")(config).eval().to(model.dtype)
    # .to() rounds its frequencies, from_pretrained would not
    other.model.rotary_emb = type(other.model.rotary_emb)(config)
    state = {}
    for name, tensor in model.state_dict().items():
        state[published(name.removeprefix("model.transformer."))] = tensor
    if model.config.weight_tying:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    state.pop("lm_head.bias", None)  # transformers has none: added by the caller
    other.load_state_dict(state)
    return other


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, 38, shape, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("variant", TWINS)
def test_logits_equal_transformers_with_the_same_weights(make_model, variant):
    fields, (kind, other_fields) = TWINS[variant]
    model = make_model(**fields)
    other = twin(model, kind, other_fields)
    tokens = ids(3, 17)
    bias = model.model["transformer"]["ff_out"].bias if model.config.include_bias else 0.0
    with torch.no_grad():
        torch.testing.assert_close(
            model(tokens), other(tokens).logits + bias, atol=forward_error(model), rtol=0
        )


def test_rotation_precision_is_what_the_config_says(make_model):
    """transformers' Llama rotates in the model's dtype, LLaDA in fp32: in bf16 the two
    settings are told apart by which is nearer to it.
    """
    half, full = (make_model(rope_full_precision=flag).to(torch.bfloat16) for flag in (False, True))
    with torch.no_grad():
        expected = twin(half, "Llama", {})(ids(2, 17)).logits.float()
        errors = [
            float((model(ids(2, 17)).float() - expected).abs().mean()) for model in (half, full)
        ]
    assert errors[0] < 0.2 * errors[1]  # measured: 0 and 0.007


def test_attention_sees_later_tokens(make_model):
    model, tokens = make_model(), ids(1, 9)
    changed = tokens.clone()
    changed[0, -1] = (tokens[0, -1] + 1) % 38
    assert (model(tokens)[0, 0] - model(changed)[0, 0]).abs().max() > 100 * forward_error(model)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_real_position(make_model, side):
    model, tokens, padding = make_model(), ids(2, 11), torch.full((2, 5), 38)
    real = torch.ones(2, 11)
    parts = ((padding, 0 * real[:, :5]), (tokens, real))
    padded, attention_mask = (
        torch.cat(pair, 1) for pair in zip(*(parts if side == "left" else parts[::-1]))
    )
    shown = slice(5, None) if side == "left" else slice(None, 11)
    torch.testing.assert_close(
        model(padded, attention_mask)[:, shown], model(tokens), atol=forward_error(model), rtol=0
    )


def test_the_content_of_padding_is_never_seen(make_model):
    model, tokens = make_model(), ids(1, 12)
    attention_mask = (torch.arange(12) >= 4)[None]
    other = torch.where(attention_mask, tokens, 0)
    assert torch.equal(model(tokens, attention_mask)[:, 4:], model(other, attention_mask)[:, 4:])


def test_embeddings_in_place_of_ids_give_the_same_logits(make_model):
    model, tokens = make_model(), ids(2, 6)
    assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(tokens)), model(tokens))


def head_weight(model: LLaDA) -> torch.Tensor:
    return (
        model.embedding if model.config.weight_tying else model.model["transformer"]["ff_out"]
    ).weight


@pytest.mark.parametrize("fields", [{}, dict(weight_tying=True)], ids=str)
def test_head_at_some_positions_equals_the_whole_logits_there(make_model, fields):
    model, tokens, at = make_model(**fields), ids(2, 10), torch.tensor([1, 4, 9])
    hidden = model.hidden_states(tokens)
    # sums of 32 products, in two orders
    bound = rounding(2 * 32, hidden.abs() @ head_weight(model).abs().t())
    torch.testing.assert_close(model.head(hidden[:, at]), model(tokens)[:, at], atol=bound, rtol=0)


@pytest.mark.parametrize("fields", [{}, dict(n_kv_heads=2)], ids=str)
@pytest.mark.parametrize("columns", [slice(3, 7), slice(6, None), slice(0, 1)], ids=str)
@pytest.mark.parametrize("pairs", [False, True], ids=["of tokens", "of pairs"])
def test_some_columns_beside_the_kept_keys_and_values_equal_the_whole_forward(
    make_model, fields, columns, pairs
):
    model, tokens = make_model(**fields), ids(2, 10)
    present, past = torch.arange(10) >= torch.tensor([[0], [2]]), Past()
    attention_mask = present
    if pairs:  # blocks of 4 columns that see no later one
        block = torch.arange(10) // 4
        attention_mask = present[:, None] & (block <= block[:, None])
    with torch.inference_mode():
        expected = model.streams(tokens, attention_mask, past=past).hidden
        assert torch.equal(expected, model.hidden_states(tokens, attention_mask))
        kept = [tensor.clone() for pair in past for tensor in pair]
        found = model.streams(tokens, attention_mask, columns=columns, past=past).hidden
        embedded = model.streams(
            None, attention_mask, inputs_embeds=model.embedding(tokens), columns=columns, past=past
        ).hidden
    real = present[:, columns]

    def states(of: LLaDA) -> torch.Tensor:
        """The hidden states and the keys and values, all at once."""
        filled = Past()
        hidden = of.streams(tokens, attention_mask, past=filled).hidden
        return torch.cat(
            [hidden.flatten(), *(tensor.flatten() for pair in filled for tensor in pair)]
        )

    bound = measured(states, model)
    torch.testing.assert_close(found[real], expected[:, columns][real], atol=bound, rtol=0)
    assert torch.equal(embedded, found)
    for before, after in zip(kept, [tensor for pair in past for tensor in pair]):
        assert after.shape[1] == model.config.num_kv_heads
        torch.testing.assert_close(after, before, atol=bound, rtol=0)


@pytest.mark.parametrize(
    "fields",
    [{}, {"weight_tying": True}, {"include_bias": True}, {"embedding_size": 5000}],
    ids=str,
)
@pytest.mark.parametrize("shape", [(2, 3, 32), (7, 32), (0, 32), (2, 0, 32), (32,)], ids=str)
def test_the_head_of_a_vocabulary_in_parts_is_the_whole_product(make_model, fields, shape):
    model = make_model(**{"vocab_size": 4500, **fields})
    hidden = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    head = model.embedding if model.config.weight_tying else model.model["transformer"]["ff_out"]
    with torch.inference_mode():
        logits = model.head(hidden)
        whole = F.linear(hidden, head.weight, getattr(head, "bias", None))
    assert logits.shape == whole.shape == (*shape[:-1], len(head.weight))
    # 32 products and a bias, twice
    bound = rounding(2 * 33, [1.0, *(hidden.abs() @ head.weight.abs().t()).flatten().tolist()])
    torch.testing.assert_close(logits, whole, atol=bound, rtol=0)


@pytest.mark.parametrize("padded", [False, True])
def test_forward_under_gradients_equals_inference(make_model, padded):
    model, tokens = make_model(n_kv_heads=2), ids(2, 10)
    attention_mask = (torch.arange(10) >= torch.tensor([[0], [3]])) if padded else None
    with torch.inference_mode():
        expected = model(tokens, attention_mask)
    trained = model.requires_grad_(True)(tokens, attention_mask)
    real = torch.ones(2, 10, dtype=torch.bool) if attention_mask is None else attention_mask
    torch.testing.assert_close(
        trained[real], expected[real].clone(), atol=forward_error(model), rtol=0
    )


def test_a_backward_works_after_an_inference_mode_forward(make_model):
    model, tokens = make_model(), ids(1, 6)
    with torch.inference_mode():
        model(tokens)
    model.requires_grad_(True)(tokens).sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all()
        for parameter in model.parameters()
    )


def test_rotary_tables_stay_fp32_when_the_model_becomes_bf16(make_model):
    used, fresh = make_model(), make_model()
    used(ids(1, 40))  # makes the tables before the cast
    used, fresh = used.to(torch.bfloat16), fresh.to(torch.bfloat16)
    assert torch.equal(used(ids(1, 40)), fresh(ids(1, 40)))
    tables = [
        table
        for model in (used, fresh)
        for both in model.rotations.tables.values()
        for table in both
    ]
    assert tables and all(table.dtype == torch.float32 for table in tables)


def test_a_row_longer_than_the_first_table_extends_it(make_model):
    model, tokens = make_model(max_sequence_length=512), ids(1, 300)
    short = model(tokens[:, :8])
    assert model(tokens).isfinite().all()
    assert torch.equal(model(tokens[:, :8]), short)


def test_initialise_is_determined_by_the_generator(make_model):
    model, other = LLaDA(make_model().config), LLaDA(make_model().config)
    for target, seed in ((model, 3), (other, 3)):
        initialise(target, torch.Generator().manual_seed(seed))
    state, same = model.state_dict(), other.state_dict()
    assert all(torch.equal(state[name], same[name]) for name in state)
    initialise(other, torch.Generator().manual_seed(4))
    assert not torch.equal(
        state["model.transformer.wte.weight"], other.state_dict()["model.transformer.wte.weight"]
    )


def test_config_round_trips_through_its_published_form(make_model):
    config = make_model(n_kv_heads=2, embedding_size=48).config
    assert type(config).from_dict(config.to_dict()) == config
    assert dataclasses.replace(config, n_kv_heads=None).num_kv_heads == config.n_heads


def test_more_tokens_than_the_context_are_refused(make_model):
    model = make_model(max_sequence_length=8)
    assert model(torch.zeros(1, 8, dtype=torch.long)).shape[1] == 8
    with pytest.raises(
        ValueError,
        match=r"^9 tokens exceed the model's context of 8 \(max_sequence_length of its config\): "
        r"give fewer$",
    ):
        model(torch.zeros(1, 9, dtype=torch.long))


def test_a_row_may_hold_a_text_twice_but_no_position_beyond_the_context(make_model):
    model = make_model(max_sequence_length=8)
    text = torch.arange(8)[None]
    twice, positions = text.repeat(1, 2), torch.arange(8).repeat(1, 2)
    copy = torch.arange(16)[None] // 8
    apart = copy[:, :, None] == copy[:, None]  # (1, 2 L, 2 L)
    found = model(twice, apart, position_ids=positions)
    expected = model(text).repeat(1, 2, 1)
    torch.testing.assert_close(found, expected, atol=forward_error(model), rtol=0)
    streams = model.streams(twice, apart, position_ids=positions)
    assert torch.equal(model.head(streams.hidden), found)
    with pytest.raises(ValueError, match="^9 tokens exceed the model's context of 8 "):
        model(text, position_ids=positions[:, :8] + 1)


# ---- which kernels


class Operators:
    """Within it, the names of operators that run are noted, those inside others too."""

    def __enter__(self) -> Operators:
        self.profile = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU]
        ).__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.profile.__exit__(*error)
        self.names = {event.key for event in self.profile.key_averages()}


@pytest.mark.parametrize(
    "fields",
    [{}, dict(n_kv_heads=2), dict(n_kv_heads=2, attention="block_causal", block_length=8)],
    ids=str,
)
@pytest.mark.parametrize("mask", ["none", "of padding", "of block-causal pairs"])
@pytest.mark.parametrize("is_cached", [False, True])
def test_attention_goes_to_a_fused_kernel(make_model, fields, mask, is_cached):
    """By operators' names, on a GPU where there is one: never the fallback that writes out
    all scores.
    """
    on_gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    # wide enough for every kernel of a GPU
    model = make_model(d_model=64, **fields).to(device, dtype)
    tokens = ids(2, 24).to(device)
    real = torch.arange(24, device=device) >= torch.tensor([[0], [5]], device=device)
    block = torch.arange(24, device=device) // 8
    masks = {
        "none": None,
        "of padding": real,
        "of block-causal pairs": real[:, None] & (block <= block[:, None]),
    }
    past = Past() if is_cached else None
    columns = slice(8, 16) if is_cached else slice(None)
    with torch.inference_mode():
        model.streams(tokens, masks[mask], past=past)
        with Operators() as found:
            model.streams(tokens, masks[mask], past=past, columns=columns)
    kernels = {name for name in found.names if "_scaled_dot_product" in name}
    assert kernels and not any("math" in name for name in kernels)
    of_all_pairs = mask == "of block-causal pairs" or "attention" in fields
    if not (on_gpu and of_all_pairs and not is_cached):
        assert "aten::repeat_interleave" not in found.names


@pytest.mark.parametrize("seen", [None, 1, 5])
def test_queries_of_heads_that_share_a_key_may_stand_one_after_another(monkeypatch, seen):
    """As on a GPU under a mask, whose kernel takes no groups. seen: queries with own masks."""
    monkeypatch.setattr(layer, "GROUPED", False)
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 6, 5, 8, generator=generator)
    k, v = torch.randn(2, 2, 2, 9, 8, generator=generator)  # two heads for six
    visible = None if seen is None else torch.rand(2, 1, seen, 9, generator=generator) > 0.3

    def repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1), visible)

    with Operators() as operators:
        found = attend(q, k, v, visible)
    assert "aten::repeat_interleave" not in operators.names
    expected = repeated(q, k, v)
    bound = twice_naive(expected, repeated(q.double(), k.double(), v.double()))
    torch.testing.assert_close(found, expected, atol=bound, rtol=0)


@pytest.mark.parametrize(
    "rows, columns, masked, grouped",
    [
        (1, 32, False, True),
        (2, 32, False, False),  # of four heads 128 queries
        (2, 33, False, True),
        (8, 4, False, False),
        (1, 32, True, False),
        (1, 1280, True, False),
    ],
)
def test_a_gpu_gets_few_queries_of_several_rows_as_one_head(rows, columns, masked, grouped):
    """The rule alone: there is no GPU here, and what it computes is the same."""
    q = torch.empty(rows, 8, columns, 64, device="meta")
    visible = torch.empty(rows, 1, 1, 64, dtype=torch.bool, device="meta") if masked else None
    assert layer._serves_groups(q, visible, 4) is grouped
    assert layer._serves_groups(torch.empty(rows, 8, columns, 64), visible, 4)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("trains", [False, True])
def test_grouped_keys_are_those_of_as_many_heads_repeated(masked, trains):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 6, 5, 8, generator=generator, requires_grad=trains)
    k, v = torch.randn(2, 2, 2, 9, 8, generator=generator)  # two heads for six
    visible = torch.rand(2, 1, 5, 9, generator=generator) > 0.3 if masked else None
    found = attend(q, k, v, visible)
    expected = attend(q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1), visible)
    assert torch.equal(found, expected)
