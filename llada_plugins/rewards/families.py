"""The four published families of process reward models.

How each spells a solution, where its scores are read, and what head it has.

Positions are found by what was written where, never by searching for a token that the
text itself may contain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from torch import nn

from llada_plugins.models import text

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


class Encoded(NamedTuple):
    """A solution as a PRM reads it."""

    ids: list[int]
    positions: list[int]  # one per step: where its score is read


Encode = Callable[[str, Sequence[str]], Encoded]  # question, steps
Head = Callable[["PretrainedConfig"], dict[str, nn.Module]]  # its modules, by name


def token_class_ids(
    tokenizer: PreTrainedTokenizerBase, question: str, steps: Sequence[str], separator: str
) -> tuple[list[int], list[int]]:
    """Ids and read positions of TRL's token classification.

    [BOS if any] + prompt + (step + separator) for each step. Each piece is tokenised by
    itself, as in training: jointly, "." and a newline would merge into one token. A step's
    read position is that of its separator's last token.
    """

    def encode(string: str) -> list[int]:
        return tokenizer.encode(string, add_special_tokens=False)

    end = encode(separator)
    if not end:
        raise ValueError(
            f"prm_separator={separator!r} has no token in this PRM's tokenizer: give the one that "
            "it was trained with"
        )
    ids = ([] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]) + encode(question)
    positions = []
    for step in steps:
        ids += encode(step) + end
        positions.append(len(ids) - 1)
    return ids, positions


def token_class_encoder(tokenizer: PreTrainedTokenizerBase, options: Mapping[str, str]) -> Encode:
    """TRL's PRMTrainer: pieces tokenised apart."""
    return lambda question, steps: Encoded(
        *token_class_ids(tokenizer, question, steps, options["prm_separator"])
    )


def qwen_encoder(tokenizer: PreTrainedTokenizerBase, options: Mapping[str, str]) -> Encode:
    """Qwen2.5-Math-PRM: system, question, and an answer with the marker after every step."""
    marker = options["prm_marker"]
    token = one_token(tokenizer, "prm_marker", marker)

    def encode(question: str, steps: Sequence[str]) -> Encoded:
        answer = "".join(step + marker for step in steps)
        turns = [("system", options["prm_system"]), ("user", question), ("assistant", answer)]
        string = render(tokenizer, turns)
        # counted from the back: a template may trim what the answer begins with
        ends = [len(string)]
        for step in reversed(steps[1:]):
            ends.insert(0, ends[0] - len(step + marker))
        return read_at_markers(tokenizer, string, ends, token)

    return encode


def math_shepherd_encoder(tokenizer: PreTrainedTokenizerBase, options: Mapping[str, str]) -> Encode:
    """Math-Shepherd (arXiv 2312.08935): "question step1 ки", a newline, "step2 ки" and so on."""
    marker = options["prm_marker"]
    token = one_token(tokenizer, "prm_marker", marker)

    def encode(question: str, steps: Sequence[str]) -> Encoded:
        string = question
        ends: list[int] = []
        for step in steps:
            before = "\n" if ends else " "
            string += f"{before}{step} {marker}"
            ends.append(len(string))
        return read_at_markers(tokenizer, string, ends, token)

    return encode


def chat_encoder(tokenizer: PreTrainedTokenizerBase, options: Mapping[str, str]) -> Encode:
    """RLHFlow: every step is a user's turn, which the assistant answers with "+".

    The first turn has the question before its step. A score is the model's own choice of the
    assistant's turn, so it is read one position before it.
    """
    positive = options["prm_positive"]
    token = one_token(tokenizer, "prm_positive", positive)

    def encode(question: str, steps: Sequence[str]) -> Encoded:
        turns = []
        for step in (f"{question} {steps[0]}", *steps[1:]):
            turns += [("user", step), ("assistant", positive)]
        strings = [render(tokenizer, turns[:count]) for count in range(2, len(turns) + 1, 2)]
        if not all(strings[-1].startswith(string) for string in strings):
            raise ValueError(
                "the PRM's chat template changes earlier turns when one is added, so it is "
                "unknown where steps end: use the template that the PRM was trained with"
            )
        ends = [len(string) for string in strings]
        ids, positions = read_at_markers(tokenizer, strings[-1], ends, token)
        return Encoded(ids, [position - 1 for position in positions])

    return encode


def one_token(tokenizer: PreTrainedTokenizerBase, option: str, string: str) -> int:
    """The id of a marker or candidate.

    One that is not exactly one known token would be read somewhere else, so it is refused.
    """
    ids = tokenizer.encode(string, add_special_tokens=False)
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise ValueError(
            f"{option}={string!r} must be one known token of the PRM's tokenizer, which makes "
            f"{tokenizer.convert_ids_to_tokens(ids)} of it: give {option}= the token that this "
            "PRM was trained with"
        )
    return ids[0]


def render(tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]]) -> str:
    """The chat up to the end of the last turn's text.

    What a template puts after it cannot change a causal model's scores.
    """
    return text.render_chat(
        tokenizer, [{"role": role, "content": content} for role, content in turns], prefill=True
    )


def read_at_markers(
    tokenizer: PreTrainedTokenizerBase, string: str, ends: Sequence[int], token: int
) -> Encoded:
    """Ids of the string, and the positions of the markers that end at these characters.

    The same token may stand elsewhere too.
    """
    bos = tokenizer.bos_token
    encoding = tokenizer(
        string, add_special_tokens=not (bos and string.startswith(bos)), return_offsets_mapping=True
    )
    ids = encoding["input_ids"]
    place = {
        end: position
        for position, (start, end) in enumerate(encoding["offset_mapping"])
        if end > start
    }
    positions = [place[end] for end in ends if end in place]
    if len(positions) < len(ends) or any(ids[position] != token for position in positions):
        raise ValueError(
            f"the PRM's tokenizer joins the marker {tokenizer.convert_ids_to_tokens(token)!r} "
            "with the text around it: give the tokenizer and the marker that the PRM was trained "
            "with"
        )
    return Encoded(ids, positions)


def mlp_head(config: PretrainedConfig) -> dict[str, nn.Module]:
    """Qwen2.5-Math-PRM's.

    transformers' own classes would leave it out and put random numbers in its place.
    """
    width = config.hidden_size
    return {"score": nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))}


def linear_head(config: PretrainedConfig) -> dict[str, nn.Module]:
    """That of transformers' *ForTokenClassification."""
    if config.num_labels != 2:
        raise ValueError(
            f"this PRM has {config.num_labels} labels (id2label), a token-classification PRM has "
            "2: wrong and right"
        )
    bias = getattr(config, "token_classification_bias", True)
    return {"score": nn.Linear(config.hidden_size, 2, bias=bias)}


def vocabulary_head(config: PretrainedConfig) -> dict[str, nn.Module]:
    """A language model's, of which two rows are kept after loading.

    Tied ones are the embedding's.
    """
    if config.tie_word_embeddings:
        return {}
    return {"lm_head": nn.Linear(config.hidden_size, config.vocab_size, bias=False)}


FamilyName = Literal["qwen", "token_classification", "math_shepherd", "chat"]


class Family(NamedTuple):
    """A row of FAMILIES."""

    options: Mapping[str, str | None]  # those it has, with published defaults
    encoder: Callable[[PreTrainedTokenizerBase, Mapping[str, str]], Encode]
    head: Head


FAMILIES: dict[FamilyName, Family] = {
    "qwen": Family(
        {
            "prm_marker": "<extra_0>",
            "prm_system": r"Please reason step by step, and put your final answer within \boxed{}.",
        },
        qwen_encoder,
        mlp_head,
    ),
    "token_classification": Family({"prm_separator": None}, token_class_encoder, linear_head),
    "math_shepherd": Family(
        {"prm_marker": "ки", "prm_positive": "+", "prm_negative": "-"},
        math_shepherd_encoder,
        vocabulary_head,
    ),
    "chat": Family({"prm_positive": "+", "prm_negative": "-"}, chat_encoder, vocabulary_head),
}


def find_family(
    folder: Path, asked: FamilyName | None, architectures: Sequence[str], tensors: Sequence[str]
) -> FamilyName:
    """The family that the files decide; where they leave it open, the one asked for.

    Raises ValueError where the two disagree.
    """
    possible: list[FamilyName]
    if "Qwen2ForProcessRewardModel" in architectures or "score.0.weight" in tensors:
        possible = ["qwen"]  # whatever else is said: no other family has a head of two layers
    elif any(name.endswith("ForTokenClassification") for name in architectures):
        possible = ["token_classification"]
    elif any(name.endswith("ForCausalLM") for name in architectures):
        possible = ["math_shepherd", "chat"]
    else:
        raise ValueError(
            f"{folder}: architectures is {list(architectures)}, not that of a process reward "
            "model: known are Qwen2ForProcessRewardModel, *ForTokenClassification and "
            "*ForCausalLM"
        )
    if asked is None and len(possible) > 1:
        raise ValueError(
            f"{folder} is a causal LM, whose files do not say how it judges steps: pass "
            "prm_family=math_shepherd (a marker after every step) or prm_family=chat (+ and - as "
            "the assistant's turns)"
        )
    if asked is not None and asked not in possible:
        raise ValueError(
            f"prm_family={asked!r} contradicts the files of {folder} (architectures "
            f"{list(architectures)}): they are of {' or '.join(possible)}"
        )
    return asked or possible[0]
