"""Where a context ends and a choice begins: lm-eval's rule where no token spans the
join, the choice's own text where one does.
"""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llada_plugins.models import text

pytestmark = pytest.mark.floats

CORPUS = [
    "There is a number of numbers, and a numbness.",
    "They answered: Let f(x) = f(2) + 2.",
    "Let f(x) be 12345.",
    "naïve café 中文字 number",
    "the answer is the answer",
    "  two  spaces\n\nand lines\n",
] * 4
WORDS = [
    *"ab(x)2 3.'",
    " the",
    "num",
    "ber",
    "answ",
    "ered",
    "\n\n",
    "  ",
    "é",
    "e\u0301",
    "中",
    "文",
    "😀",
    "👩\u200d💻",
    "\u200d",
    "ﬁ",
]


def byte_level() -> Tokenizer:
    """As LLaDA's and GPT-2's: merged bytes, every text survives."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(
        tokenizer,
        trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )


def metaspace(scheme: str = "always") -> Tokenizer:
    """As Llama 2's and Mistral's: spaces are characters of words, one is put before
    every text, unknown characters are bytes.
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    every_byte = [f"<0x{number:02X}>" for number in range(256)]
    return _trained(
        tokenizer, trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", *every_byte])
    )


def composed() -> Tokenizer:
    """Byte level after NFC, which joins a letter and the accent behind it."""
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def pieces() -> Tokenizer:
    """Unigram pieces, as T5's: the best segmentation of the whole string."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    return _trained(
        tokenizer,
        trainers.UnigramTrainer(vocab_size=90, unk_token="<unk>", special_tokens=["<unk>"]),
    )


def unknown() -> Tokenizer:
    """Whole words, neighbouring unknown characters as one token."""
    tokenizer = metaspace("never")
    tokenizer.model = models.BPE(
        vocab={"<unk>": 0, "a": 1, "b": 2}, merges=[], unk_token="<unk>", fuse_unk=True
    )
    return tokenizer


def _trained(tokenizer: Tokenizer, trainer: object) -> Tokenizer:
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


EXACT = {
    "byte level": byte_level,
    "metaspace": metaspace,
    "metaspace first": lambda: metaspace("first"),
}
TOKENIZERS = {**EXACT, "composed": composed, "pieces": pieces, "unknown": unknown}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=TOKENIZERS[request.param](), clean_up_tokenization_spaces=False
    )


def fast(name: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=TOKENIZERS[name](), clean_up_tokenization_spaces=False
    )


def pair(
    tokenizer: PreTrainedTokenizerFast, context: str, continuation: str
) -> tuple[list[int], list[int]]:
    ids = text.encode(tokenizer, context)
    return ids, text.encode_pair(tokenizer, context, ids, continuation)


def random_pairs(number: int) -> list[tuple[str, str]]:
    draw = random.Random(0)
    texts = ["".join(draw.choices(WORDS, k=draw.randint(1, 6))) for _ in range(2 * number)]
    pairs = list(zip(texts[::2], texts[1::2]))
    for string in draw.choices(CORPUS, k=number):  # cut anywhere, mostly within a word
        place = draw.randrange(1, len(string))
        pairs.append((string[:place], string[place:]))
    return [each for each in pairs if each[0] and each[0] == each[0].strip()]


def test_where_no_token_spans_the_join_the_split_is_lm_evals(tokenizer):
    harness = pytest.importorskip("lm_eval.api.model")

    class Stock:
        backend = "causal"

        def tok_encode(self, string: str) -> list[int]:
            return tokenizer.encode(string, add_special_tokens=False)

    compared = 0
    for context, continuation in random_pairs(400):
        offsets = tokenizer(
            context + continuation, add_special_tokens=False, return_offsets_mapping=True
        )["offset_mapping"]
        if any(start < len(context) < stop for start, stop in offsets):
            continue
        expected = harness.TemplateLM._encode_pair(Stock(), context, continuation)
        assert tuple(pair(tokenizer, context, continuation)) == expected
        compared += 1
    assert compared >= 50


@pytest.mark.parametrize("name", EXACT)
def test_context_and_choice_always_decode_to_their_own_texts(name):
    tokenizer, spanned = fast(name), 0
    for context, continuation in random_pairs(400):
        first, second = pair(tokenizer, context, continuation)
        assert second, (context, continuation)
        assert first == tokenizer.encode(context, add_special_tokens=False)
        whole = tokenizer.encode(context + continuation, add_special_tokens=False)
        assert text.decode(tokenizer, first + second, ()) == context + continuation
        spanned += first + second != whole
    assert spanned >= 20


@pytest.mark.parametrize(
    ("context", "continuation"),
    [
        ("There is a num", "ber"),
        ("They answ", "ered"),
        ("Let f(", "x)"),
        ("a 1", "2345"),
        ("caf", "é"),
        ("中", "文字"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", EXACT)
def test_the_reported_choices_are_scored_as_the_texts_that_they_are(name, context, continuation):
    tokenizer = fast(name)
    first, second = pair(tokenizer, context, continuation)
    assert text.decode(tokenizer, first, ()) == context
    assert text.decode(tokenizer, first + second, ())[len(context) :] == continuation


def test_a_byte_level_choice_behind_a_spanning_token_is_encoded_as_it_is_alone():
    tokenizer = fast("byte level")
    context, choice = "There is a num", "ber"
    whole = tokenizer.encode(context + choice)
    # one token: lm-eval's rule leaves nothing
    assert tokenizer.decode(whole[-1:]).endswith("number")
    assert whole[len(tokenizer.encode(context)) :] == []
    assert pair(tokenizer, context, choice)[1] == tokenizer.encode(choice)


def test_an_unknown_character_fused_with_the_contexts_is_not_lost():
    tokenizer = fast("unknown")
    assert tokenizer.encode("☃☃a") == [0, 1]  # both as one token
    assert pair(tokenizer, "☃", "☃a") == ([0], [0, 1])
    assert pair(tokenizer, "☃", "☃") == ([0], [0])


def test_an_accent_that_joins_the_letter_before_it_is_scored():
    tokenizer = fast("composed")
    first, second = pair(tokenizer, "cafe", "\u0301")
    assert (tokenizer.decode(first), tokenizer.decode(second)) == ("cafe", "\u0301")
