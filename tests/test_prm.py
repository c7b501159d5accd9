"""Process reward models: each family's scores equal those of transformers' own classes
on hand-built ids, and nothing is ever guessed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, normalizers, processors
from torch import Tensor

from llada_plugins.models.tokenizer import load_tokenizer
from llada_plugins.options.fields import build
from llada_plugins.rewards.families import FAMILIES, token_class_ids
from llada_plugins.rewards.process_reward_model import PRMConfig, StepScorer, load_prm
from training.data.byte_tokenizer import BOS, byte_tokenizer

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.floats

SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ROUNDING = 2e-6  # fp32 summed in another order: at most 7e-7 was seen

SOLUTIONS = [
    ("What is 2+2?", ["2+2 is 4.", "So the answer is 4."]),
    ("Name a prime.", ["7"]),
    # markers in the text itself
    ("3 - 1 = ? (ки + -)", ["Take 3.", "ки and + are no marks here", "Take 1 away: 2 -", "2\n\n"]),
    ("Wie groß?", ["größer als 4 + 1\n\nund", " 5 "]),
]


def random_model(kind: type, config, seed: int = 0):
    """A model of transformers with every parameter random, biases and norms too."""
    model, generator = kind(config), torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        scale = 0.3 if parameter.dim() == 1 or "embed" in name else 1.5 / parameter.shape[-1] ** 0.5
        parameter.data = scale * torch.randn(parameter.shape, generator=generator) + (
            "norm" in name
        )
    return model.eval()


def tokenizer_files(folder: Path, template: str | None = None, adds_bos: bool = False) -> None:
    """The byte tokenizer with the families' markers; adds_bos: as Llama's and Mistral's
    do, unasked.
    """
    ids = byte_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("<extra_0>", special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("ки", normalized=False)])
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])]
        )
        edit(folder, "tokenizer_config.json", add_bos_token=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    if template:
        edit(folder, "tokenizer_config.json", chat_template=template)


def edit(folder: Path, name: str = "config.json", **fields) -> None:
    """Change keys of a JSON file; None removes."""
    raw = {**json.loads((folder / name).read_text()), **fields}
    (folder / name).write_text(
        json.dumps({key: value for key, value in raw.items() if value is not None})
    )


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


SHAPE = dict(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
)


def save_qwen(folder: Path) -> None:
    """As Qwen publishes it: the body under model., the head's four tensors, a class
    that transformers lacks, its code named but absent.
    """
    body = random_model(transformers.Qwen2Model, transformers.Qwen2Config(**SHAPE))
    head = qwen_head()
    body.save_pretrained(folder)
    state = {f"model.{name}": tensor for name, tensor in body.state_dict().items()}
    save_file(
        {**state, **{f"score.{name}": tensor for name, tensor in head.state_dict().items()}},
        folder / "model.safetensors",
    )
    edit(
        folder,
        architectures=["Qwen2ForProcessRewardModel"],
        auto_map={"AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel"},
    )
    tokenizer_files(folder, CHATML)


def qwen_head() -> torch.nn.Sequential:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))


def save_token_classification(folder: Path) -> None:
    config = transformers.LlamaConfig(**SHAPE, num_labels=2)
    random_model(transformers.LlamaForTokenClassification, config).save_pretrained(folder)
    edit(folder, step_separator="\n\n")
    tokenizer_files(folder, adds_bos=True)


def save_math_shepherd(folder: Path) -> None:
    random_model(
        transformers.MistralForCausalLM, transformers.MistralConfig(**SHAPE, sliding_window=20)
    ).save_pretrained(folder)
    tokenizer_files(folder, adds_bos=True)


def save_chat(folder: Path) -> None:
    random_model(transformers.LlamaForCausalLM, transformers.LlamaConfig(**SHAPE)).save_pretrained(
        folder
    )
    # with LLaDA's template, which is Llama 3's but opens the assistant's turn unasked
    tokenizer_files(folder, adds_bos=True)


def save_tied_chat(folder: Path) -> None:
    config = transformers.Qwen2Config(**SHAPE, tie_word_embeddings=True)
    random_model(transformers.Qwen2ForCausalLM, config).save_pretrained(folder)
    tokenizer_files(folder, CHATML)


PUBLISHED = {
    "qwen": (save_qwen, {}),
    "token_classification": (save_token_classification, {}),
    "math_shepherd": (save_math_shepherd, {"prm_family": "math_shepherd"}),
    "chat": (save_chat, {"prm_family": "chat"}),
    "tied chat": (save_tied_chat, {"prm_family": "chat"}),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    """A checkpoint folder of each family; for reading only."""
    folders = {name: tmp_path_factory.mktemp(name.replace(" ", "_")) for name in PUBLISHED}
    for name, (save, _) in PUBLISHED.items():
        save(folders[name])
    return folders


@pytest.fixture
def fresh(tmp_path) -> Callable[[str], Path]:
    """A checkpoint folder of a family that the test may damage."""

    def make(name: str) -> Path:
        PUBLISHED[name][0](tmp_path)
        return tmp_path

    return make


def scorer_of(folder: Path, name: str, **options) -> StepScorer:
    return load_prm(PRMConfig(prm=str(folder), **{**PUBLISHED[name][1], **options}), "cpu")


# --- what the published code computes, one solution at a time -------------------------


def qwen_oracle(folder: Path, question: str, steps: list[str]) -> list[float]:
    """The card's computation, without its loss of zeros: the whole chat, every position
    that holds <extra_0>.
    """
    state = load_file(folder / "model.safetensors")
    body = transformers.Qwen2Model(transformers.Qwen2Config.from_pretrained(folder)).eval()
    body.load_state_dict(
        {name[6:]: tensor for name, tensor in state.items() if name.startswith("model.")}
    )
    head = qwen_head()
    head.load_state_dict(
        {name[6:]: tensor for name, tensor in state.items() if name.startswith("score.")}
    )
    chat = (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        f"{'<extra_0>'.join(steps)}<extra_0><|im_end|>\n"
    )
    ids = torch.tensor([load_tokenizer(folder).encode(chat, add_special_tokens=False)])
    probability = head(body(ids).last_hidden_state)[0].softmax(-1)[:, 1]
    return probability[ids[0] == load_tokenizer(folder).convert_tokens_to_ids("<extra_0>")].tolist()


def token_classification_oracle(folder: Path, question: str, steps: list[str]) -> list[float]:
    model = transformers.AutoModelForTokenClassification.from_pretrained(
        folder, dtype=torch.float32
    ).eval()
    tokenizer, separator = load_tokenizer(folder), "\n\n"
    ids = [tokenizer.bos_token_id, *tokenizer(question, add_special_tokens=False)["input_ids"]]
    scores = []
    # by prefixes: a causal model gives each step the same score before the next one is
    # known
    for step in steps:
        ids = (
            ids
            + tokenizer(step, add_special_tokens=False)["input_ids"]
            + tokenizer(separator, add_special_tokens=False)["input_ids"]
        )
        scores.append(model(torch.tensor([ids])).logits[0, -1].softmax(-1)[1].item())
    return scores


def math_shepherd_oracle(folder: Path, question: str, steps: list[str]) -> list[float]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, scores, solution = load_tokenizer(folder), [], ""
    plus, minus = tokenizer.convert_tokens_to_ids(["+", "-"])
    for number, step in enumerate(steps):
        solution += ("\n" if number else "") + step + " ки"
        logits = model(torch.tensor([tokenizer.encode(f"{question} {solution}")])).logits[0, -1]
        scores.append(logits[[plus, minus]].softmax(-1)[0].item())
    return scores


def chat_oracle(folder: Path, question: str, steps: list[str]) -> list[float]:
    """What the model itself would say next, asked step by step."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, scores, turns = load_tokenizer(folder), [], []
    plus, minus = tokenizer.convert_tokens_to_ids(["+", "-"])
    for step in steps:
        turns.append({"role": "user", "content": step if turns else f"{question} {step}"})
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        logits = model(torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])).logits[
            0, -1
        ]
        scores.append(logits[[plus, minus]].softmax(-1)[0].item())
        turns.append({"role": "assistant", "content": "+"})
    return scores


ORACLES = {
    "qwen": qwen_oracle,
    "token_classification": token_classification_oracle,
    "math_shepherd": math_shepherd_oracle,
    "chat": chat_oracle,
    "tied chat": chat_oracle,
}
each_family = pytest.mark.parametrize("name", PUBLISHED)


def close(scores: list[list[float]], others: list[list[float]]) -> bool:
    return list(map(len, scores)) == list(map(len, others)) and all(
        abs(a - b) <= ROUNDING for row, other in zip(scores, others) for a, b in zip(row, other)
    )


@each_family
@torch.no_grad()
def test_scores_equal_transformers_own_classes_on_ids_built_by_hand(saved, name):
    scores = scorer_of(saved[name], name).score(SOLUTIONS)
    assert close(
        scores, [ORACLES[name](saved[name], question, steps) for question, steps in SOLUTIONS]
    )
    flat = [score for row in scores for score in row]
    # else equality would say little
    assert all(0 <= score <= 1 for score in flat) and max(flat) - min(flat) > 0.05


@each_family
def test_scores_do_not_depend_on_the_batch_nor_on_the_order(saved, name):
    alone = scorer_of(saved[name], name, prm_batch_size=1)
    batched = scorer_of(saved[name], name, prm_batch_size=3)
    expected = [alone.score([solution])[0] for solution in SOLUTIONS]
    assert close(batched.score(SOLUTIONS), expected)
    assert close(batched.score(SOLUTIONS[::-1]), expected[::-1])


@each_family
def test_a_steps_score_depends_on_nothing_behind_it(saved, name):
    scorer = scorer_of(saved[name], name)
    question, steps = SOLUTIONS[2]
    whole, *prefixes = scorer.score(
        [(question, steps), *((question, steps[:count]) for count in (1, 2, 3))]
    )
    assert close(prefixes, [whole[:count] for count in (1, 2, 3)])


@each_family
def test_equal_solutions_are_scored_once_and_calls_are_counted(saved, name):
    scorer = scorer_of(saved[name], name)
    first, second, third = scorer.score([SOLUTIONS[0], SOLUTIONS[1], SOLUTIONS[0]])
    assert first == third != second
    assert scorer.num_calls == 2 and scorer.seconds > 0
    assert scorer.score([]) == [] and scorer.num_calls == 2


@each_family
def test_what_was_said_of_a_step_holds_and_is_not_asked_again(saved, name):
    scorer = scorer_of(saved[name], name)
    question, steps = SOLUTIONS[2]
    heard: list[dict[bytes, float]] = [{}]
    whole = scorer.score([(question, steps)], heard)
    assert scorer.score([(question, steps[:2])], heard) == [whole[0][:2]]
    assert scorer.num_calls == 1 and len(heard[0]) == len(steps)
    [other] = scorer.score([(question, [*steps[:2], "no"])], heard)
    assert scorer.num_calls == 2 and other[:2] == whole[0][:2] and other[2] != whole[0][2]
    assert scorer.score([(f"{question}!", steps)], heard)[0][0] != whole[0][0]


@each_family
def test_read_positions_stand_where_the_family_puts_them(saved, name):
    scorer, tokenizer = scorer_of(saved[name], name), load_tokenizer(saved[name])
    for question, steps in SOLUTIONS:
        ids, positions = scorer.encode(question, steps)
        assert len(positions) == len(steps)
        assert positions == sorted(set(positions))
        assert positions[-1] < len(ids)
        follows = name.endswith("chat")  # read before the marker
        marks = [ids[position + follows] for position in positions]
        mark = {"qwen": "<extra_0>", "token_classification": "Ċ", "math_shepherd": "ки"}.get(
            name, "+"
        )
        assert set(tokenizer.convert_ids_to_tokens(marks)) == {mark}


@each_family
def test_bfloat16_moves_scores_by_little_and_the_head_stays_in_fp32(saved, name):
    scorer = scorer_of(saved[name], name, prm_dtype="bfloat16")
    assert {parameter.dtype for parameter in scorer.model.score.parameters()} == {torch.float32}
    assert scorer.model.model.embed_tokens.weight.dtype == torch.bfloat16
    difference = [
        abs(a - b)
        for row, other in zip(
            scorer.score(SOLUTIONS), scorer_of(saved[name], name).score(SOLUTIONS)
        )
        for a, b in zip(row, other)
    ]
    assert max(difference) < 0.1


def test_a_probability_of_exactly_zero_stays_with_its_step(fresh):
    folder = fresh("qwen")
    edit_tensors(
        folder,
        lambda state: state.update(
            {"score.2.weight": 1e4 * state["score.2.weight"], "score.2.bias": torch.zeros(2)}
        ),
    )
    with torch.no_grad():
        expected = [qwen_oracle(folder, *solution) for solution in SOLUTIONS]
    assert scorer_of(folder, "qwen").score(SOLUTIONS) == expected
    assert {score for row in expected for score in row} == {0.0, 1.0}


def test_a_tokenizer_that_marks_spaces_reads_the_token_with_its_space(tmp_path):
    """As Mistral's: a normaliser writes spaces as ▁ and puts one in front, so the
    marker is one token, alone and in running text.
    """
    save_math_shepherd(tmp_path)
    alphabet = sorted(set("▁Step12:takeroundписки+-=?\n."))
    merges = [("к", "и"), ("▁", "ки"), ("▁", "+"), ("▁", "-")]
    vocabulary = {
        token: number
        for number, token in enumerate(["<unk>", BOS, *alphabet, *map("".join, merges)])
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, 1)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "special_tokens_map.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"})
    )
    ids, positions = scorer_of(tmp_path, "math_shepherd").encode(
        "ки?", ["Step 1: ки.", "Step 2: taken"]
    )
    tokens = load_tokenizer(tmp_path).convert_ids_to_tokens(ids)
    assert tokens[:3] == [BOS, "▁ки", "?"] and tokens.count("▁ки") == 4
    assert tokens[positions[0] - 2 : positions[0] + 3] == ["▁ки", ".", "▁ки", "\n", "S"]
    assert positions[1] == len(ids) - 1


def test_token_class_ids_are_those_of_training_piece_by_piece(saved):
    tokenizer = load_tokenizer(saved["token_classification"])
    ids, positions = token_class_ids(tokenizer, "q", ["ab", "c"], "\n\n")
    assert tokenizer.convert_ids_to_tokens(ids) == [
        BOS,
        "q",
        "a",
        "b",
        "Ċ",
        "Ċ",
        "c",
        "Ċ",
        "Ċ",
    ]
    assert positions == [5, 8]


@pytest.mark.parametrize(
    "given, used",
    [(None, "\n\n"), ("\\n\\n", "\\n\\n"), ('"\\n\\n"', "\n\n"), ("\n", "\n"), ('"', '"')],
)
def test_the_separator_is_the_files_or_the_one_given_with_quotes_read_as_json(saved, given, used):
    scorer = scorer_of(saved["token_classification"], "token_classification", prm_separator=given)
    assert scorer.options == {"prm_separator": used}
    ids, positions = scorer.encode("q", ["a"])
    assert load_tokenizer(saved["token_classification"]).decode(ids) == f"{BOS}qa{used}"
    assert positions == [len(ids) - 1]


def test_published_markers_can_be_replaced(saved):
    scorer = scorer_of(
        saved["math_shepherd"],
        "math_shepherd",
        prm_marker="<extra_0>",
        prm_positive="1",
        prm_negative="0",
    )
    swapped = scorer_of(
        saved["math_shepherd"],
        "math_shepherd",
        prm_marker="<extra_0>",
        prm_positive="0",
        prm_negative="1",
    )
    assert close(
        scorer.score(SOLUTIONS), [[1 - score for score in row] for row in swapped.score(SOLUTIONS)]
    )
    assert scorer.score(SOLUTIONS) != scorer_of(saved["math_shepherd"], "math_shepherd").score(
        SOLUTIONS
    )
    ids, _ = scorer_of(saved["qwen"], "qwen", prm_system="Be brief.").encode("q", ["a"])
    assert "<|im_start|>system\nBe brief.<|im_end|>" in load_tokenizer(saved["qwen"]).decode(ids)


def test_tensors_that_cannot_change_a_score_may_be_there(fresh):
    folder = fresh("qwen")
    before = scorer_of(folder, "qwen").score(SOLUTIONS)
    edit_tensors(
        folder,
        lambda state: state.update(
            {
                "lm_head.weight": torch.randn(300, 32),
                "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
            }
        ),
    )
    assert scorer_of(folder, "qwen").score(SOLUTIONS) == before


def test_options_come_from_strings_as_harnesses_pass_them():
    config = build(
        PRMConfig,
        {"prm": "x", "prm_family": "chat", "prm_batch_size": "4", "prm_max_length": "none"},
    )
    assert (config.prm_family, config.prm_batch_size, config.prm_max_length) == ("chat", 4, None)
    with pytest.raises(
        ValueError,
        match="prm_family must be one of 'qwen', 'token_classification', 'math_shepherd', 'chat', "
        "got 'trl'",
    ):
        build(PRMConfig, {"prm_family": "trl"})
    for options, message in [
        ({"prm_batch_size": 0}, "prm_batch_size must be at least 1, got 0"),
        ({"prm_max_length": -1}, "prm_max_length must be at least 1, got -1"),
        (
            {"prm_dtype": "int8"},
            "prm_dtype must be auto or one of float32, bfloat16, float16, got 'int8'",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            build(PRMConfig, options)


def test_every_family_has_a_checkpoint_in_these_tests():
    assert FAMILIES.keys() <= PUBLISHED.keys()
