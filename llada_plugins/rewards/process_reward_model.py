"""Process reward models (PRMs): the probability that each step of a solution is right,
one per step.

Four published families behind one StepScorer; prm_families.py says how each spells a
solution and what head it has. What to do with the scores (last, min, product, mean) is
the caller's business, and so is filling masks: a PRM judges finished text.

Only causal transformers are taken. In them a step's score depends on nothing behind it,
so one forward scores every step of a solution, and rows padded on the right need no
attention mask: what is read never sees the padding.
"""

from __future__ import annotations

import json
import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from llada_plugins.files.json_files import (
    FLAG,
    TEXT,
    first_line,
    is_there,
    list_of,
    nullable,
    number,
    one_of,
    read_json,
    record,
    table_of,
    whole,
)
from llada_plugins.models import loading as checkpoint
from llada_plugins.models import text
from llada_plugins.models.folder import resolve, tensor_files
from llada_plugins.models.llada_config import LAYERS, TOKENS, WIDTH
from llada_plugins.models.quantization import QUANTIZE, check_quantize
from llada_plugins.models.submodules import home
from llada_plugins.options.fields import arg
from llada_plugins.options.startup_messages import silenced

from .families import FAMILIES, Encode, Encoded, Head, find_family, one_token

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# model types whose every position sees only what is before it
CAUSAL = ("llama", "mistral", "qwen2", "qwen3")
# Fields of config.json that a forward pass, the head or this package reads; absent,
# transformers' defaults hold.
CONFIG = record(
    optional={
        "architectures": nullable(list_of(TEXT)),
        "model_type": TEXT,
        "quantization_config": nullable(record()),
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": WIDTH,
        "num_key_value_heads": nullable(WIDTH),
        "head_dim": nullable(WIDTH),
        "vocab_size": TOKENS,
        "max_position_embeddings": TOKENS,
        "rms_norm_eps": number(1e-20, 1),
        "rope_theta": number(1, 1e12),
        "rope_parameters": nullable(record()),
        "rope_scaling": nullable(record()),
        "hidden_act": TEXT,
        "tie_word_embeddings": FLAG,
        "attention_bias": FLAG,
        "mlp_bias": FLAG,
        "attention_dropout": number(0, 1),
        "sliding_window": nullable(whole(1)),
        "use_sliding_window": FLAG,
        "max_window_layers": whole(0),
        "layer_types": nullable(list_of(TEXT)),
        "pretraining_tp": one_of(1),
        "id2label": nullable(table_of(TEXT)),
        "label2id": nullable(table_of(whole())),
        "token_classification_bias": FLAG,
        "step_separator": nullable(TEXT),
        "step_split": nullable(TEXT),
        "block_length": nullable(whole(1, 2**24)),
    }
)


class ScoreError(RuntimeError):
    """A process reward model gave no number."""


@dataclass(frozen=True, kw_only=True)
class PRMConfig:
    """Which process reward model judges the steps, and how it runs."""

    prm: str | None = arg(None, "folder or hub id of the process reward model; safetensors only")
    prm_family: Literal[tuple(FAMILIES)] | None = arg(
        None,
        "how it marks steps (default: as its files say; a causal LM's do not, so math_shepherd or "
        "chat must be named)",
    )
    prm_separator: str | None = arg(
        None,
        "token_classification: text after every step (default: step_separator in the PRM's "
        "config.json); in double quotes it is "
        'JSON: "\\n\\n" is two newlines, without quotes it is four characters',
    )
    prm_marker: str | None = arg(
        None, "token after every step (default: <extra_0> for qwen, ки for math_shepherd)"
    )
    prm_positive: str | None = arg(
        None, "math_shepherd, chat: token that means a right step (default: +)"
    )
    prm_negative: str | None = arg(
        None, "math_shepherd, chat: token that means a wrong step (default: -)"
    )
    prm_system: str | None = arg(None, "qwen: system prompt (default: the model card's)")
    prm_dtype: str = arg(
        "auto",
        "auto (bfloat16 on a GPU, else float32), float32, bfloat16 or float16; the head is always "
        "float32",
    )
    prm_quantize: Literal[QUANTIZE] | None = arg(
        None,
        "int8 or nf4: its Linears in 8 or 4 bits, head and embedding apart; packed: a GPTQ "
        "checkpoint's stay packed",
    )
    prm_batch_size: int = arg(
        16, "solutions per forward of the PRM; does not change their scores beyond rounding"
    )
    prm_max_length: int | None = arg(
        None, "longest solution, question included, in tokens of the PRM (default: its context)"
    )

    def __post_init__(self) -> None:
        for name in ("prm_batch_size", "prm_max_length"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.prm_dtype not in ("auto", *checkpoint.DTYPES):
            raise ValueError(
                f"prm_dtype must be auto or one of {', '.join(checkpoint.DTYPES)}, got "
                f"{self.prm_dtype!r}"
            )
        check_quantize(self.prm_quantize)


def family_options(
    config: PRMConfig, family: str, raw: Mapping[str, Any], folder: Path
) -> dict[str, str]:
    """The options of this family, filled with its defaults; one of another family would
    have no effect and is refused.
    """
    own = FAMILIES[family].options
    for name in sorted({name for row in FAMILIES.values() for name in row.options} - own.keys()):
        if getattr(config, name) is not None:
            raise ValueError(
                f"{name} has no effect on a PRM of the {family} family, whose options are "
                f"{', '.join(own)}: leave it out"
            )
    options = {
        name: default if getattr(config, name) is None else getattr(config, name)
        for name, default in own.items()
    }
    if "prm_separator" in options:
        options["prm_separator"] = (
            raw.get("step_separator")
            if config.prm_separator is None
            else _unquoted(config.prm_separator)
        )
        # never guessed: TRL's default is a newline, the published 0.2 models' scripts
        # passed a backslash and an n, twice
        if not isinstance(options["prm_separator"], str):
            raise ValueError(
                f"{folder}: its config.json has no step_separator: pass the text that stood "
                "behind every step in training, "
                'such as prm_separator="\\n" (in double quotes a newline, without them a '
                "backslash and an n)"
            )
    if "prm_positive" in options and options["prm_positive"] == options["prm_negative"]:
        raise ValueError(
            f"prm_positive and prm_negative are both {options['prm_positive']!r}: they must differ"
        )
    return options


class TooLong(ValueError):
    """A solution that does not fit the model's context with its question."""


class StepClassifier(nn.Module):
    """A causal transformer and a head of two logits, wrong and right; parameters are
    named as in the published files.
    """

    @silenced()
    def __init__(self, config: PretrainedConfig, head: Mapping[str, nn.Module]) -> None:
        from transformers import AutoModel

        super().__init__()
        self.model = AutoModel.from_config(config)
        for name, module in head.items():
            self.add_module(name, module)

    def keep_rows(self, negative: int, positive: int) -> None:
        """Reduce a vocabulary's head to the two tokens that are compared."""
        weight = (
            self.lm_head.weight
            if hasattr(self, "lm_head")
            else self.model.get_input_embeddings().weight
        )
        self.score = nn.Linear(weight.shape[1], 2, bias=False)
        self.score.weight = nn.Parameter(weight[[negative, positive]])
        self.lm_head = None

    def forward(self, ids: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Logits (N, 2), fp32, at N places of ids (B, L)."""
        hidden = self.model(input_ids=ids, use_cache=False).last_hidden_state  # (B, L, D)
        return self.score(hidden[rows, positions].float())


@dataclass(kw_only=True)
class StepScorer:
    """A process reward model, ready to score."""

    model: StepClassifier
    encoder: Encode
    family: str
    options: dict[str, str]  # of the family, as used
    source: str  # the folder, for messages
    vocabulary: int
    max_length: int
    batch_size: int
    num_calls: int = 0  # solutions that went through the model so far
    seconds: float = 0.0  # wall time of that

    def encode(self, question: str, steps: Sequence[str], name: str = "the solution") -> Encoded:
        """Ids and one read position per step; ValueError, calling the solution by
        `name`, where it cannot be scored.
        """
        if not question.strip():
            raise ValueError(
                f"{name} has an empty question: a PRM judges steps in the light of their question"
            )
        if not steps:
            raise ValueError(f"{name} has no steps: there is nothing to score")
        for number, step in enumerate(steps, 1):
            if not step.strip():
                raise ValueError(
                    f"step {number} of the {len(steps)} of {name} is empty: leave empty steps out"
                )
        encoded = self.encoder(question, steps)
        assert len(encoded.positions) == len(steps)
        if len(encoded.ids) > self.max_length:
            raise TooLong(
                f"{name} has {len(encoded.ids)} tokens with its question, the PRM takes "
                f"{self.max_length}: lower gen_length, "
                "or raise prm_max_length if it is below the PRM's context"
            )
        text.check_vocabulary(encoded.ids, self.vocabulary, self.source)
        return encoded

    def shortened(self, question: str, steps: Sequence[str], reserve: int = 0) -> str | None:
        """The question, or the longest end of it that fits beside the steps and `reserve` tokens.

        None where no end does.
        """

        def fits(start: int) -> bool:
            return len(self.encoder(question[start:], steps).ids) + reserve <= self.max_length

        if fits(0):
            return question
        # longer text may have a few tokens less: the search then ends at an end that fits, if
        # not at the very longest
        start = bisect_left(range(len(question)), True, key=fits)
        return question[start:] if question[start:].strip() and fits(start) else None

    def score(self, solutions: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
        """P(right) of every step, in [0, 1], for each (question, steps); equal
        solutions are scored once.

        Every solution is checked before the first forward. ScoreError where the model
        gives no number.
        """
        encoded = [
            self.encode(question, steps, f"solution {number}")
            for number, (question, steps) in enumerate(solutions, 1)
        ]
        keys = [(tuple(ids), tuple(positions)) for ids, positions in encoded]
        distinct = sorted(dict.fromkeys(keys), key=lambda key: -len(key[0]))
        scores: dict[tuple, list[float]] = {}
        began = time.perf_counter()
        for first in range(0, len(distinct), self.batch_size):
            batch = distinct[first : first + self.batch_size]
            for key, values in zip(batch, self._forward(batch)):
                if any(map(math.isnan, values)):
                    raise ScoreError(
                        f"{self.source}: no number came out for solution {keys.index(key) + 1}: "
                        "the PRM's weights are "
                        "damaged, or too large for prm_dtype (bfloat16 and float32 hold more than "
                        "float16)"
                    )
                scores[key] = values
        self.num_calls += len(distinct)
        self.seconds += time.perf_counter() - began
        return [scores[key] for key in keys]

    @torch.inference_mode()
    def _forward(
        self, batch: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
    ) -> list[list[float]]:
        width = max(len(ids) for ids, _ in batch)
        device = home(self.model)
        # (B, L); any id pads
        ids = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids, _ in batch], device=device)
        # (N,)
        rows = torch.tensor(
            [row for row, (_, positions) in enumerate(batch) for _ in positions], device=device
        )
        positions = torch.tensor(
            [position for _, positions in batch for position in positions], device=device
        )
        logits = self.model(ids, rows, positions)
        right = torch.where(logits.isfinite().all(-1), logits.softmax(-1)[:, 1], torch.nan)  # (N,)
        values = iter(right.tolist())
        return [[next(values) for _ in positions] for _, positions in batch]


def _unquoted(separator: str) -> str:
    """A JSON string's value, as some versions of the harnesses' command lines leave its
    quotes on; anything else as it is.
    """
    if len(separator) < 2 or not separator[0] == separator[-1] == '"':
        return separator
    try:
        return json.loads(separator)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"prm_separator={separator} is in double quotes but is not a JSON string: {error}"
        ) from None


@dataclass(frozen=True, kw_only=True)
class OpenPRM:
    """A PRM whose files are checked, before its weights are read."""

    config: Mapping[str, Any]  # its config.json
    load: Callable[[torch.device | str], StepScorer]


def load_prm(config: PRMConfig, device: torch.device | str = "auto") -> StepScorer:
    """The PRM of a folder or hub id, without remote code; FileNotFoundError or
    ValueError before weights are read.
    """
    return open_prm(config).load(device)


def open_prm(config: PRMConfig) -> OpenPRM:
    """Check all of a PRM but its tensors' shapes; FileNotFoundError or ValueError says
    in a line what is wrong.
    """
    if config.prm is None:
        raise ValueError(
            "llada_prm needs a process reward model: pass prm=FOLDER or prm=HUB_ID, such as "
            "prm=Qwen/Qwen2.5-Math-PRM-7B"
        )
    folder = _resolve(config.prm)
    raw = read_json(folder / "config.json", CONFIG)
    files = tensor_files(folder)
    name = find_family(folder, config.prm_family, raw.get("architectures") or [], list(files))
    family, options = FAMILIES[name], family_options(config, name, raw, folder)
    body = _body_config(folder, raw)
    max_length = config.prm_max_length or body.max_position_embeddings
    if max_length > body.max_position_embeddings:
        raise ValueError(
            f"prm_max_length={max_length} exceeds the PRM's context of "
            f"{body.max_position_embeddings} tokens"
        )
    if not is_there(folder / "tokenizer.json"):
        raise FileNotFoundError(
            f"{folder} has no tokenizer.json: write one there with "
            "AutoTokenizer.from_pretrained(…).save_pretrained(…)"
        )
    tokenizer = text.load_tokenizer(folder)
    encoder = family.encoder(tokenizer, options)
    # a template or a marker that cannot work shows here, before the weights
    trial = encoder("1 + 1 = ?", ["1 + 1 is 2.", "2"])
    candidates = [
        one_token(tokenizer, option, options[option])
        for option in ("prm_negative", "prm_positive")
        if option in options
    ]
    text.check_vocabulary([*trial.ids, *candidates], body.vocab_size, str(folder))

    def load(device: torch.device | str) -> StepScorer:
        target = checkpoint.pick_device(str(device))
        model = _load_model(
            body,
            family.head,
            candidates,
            files,
            source=folder,
            device=target,
            dtype=checkpoint.pick_dtype(config.prm_dtype, target),
            quantize=config.prm_quantize,
        )
        return StepScorer(
            model=model,
            encoder=encoder,
            family=name,
            options=options,
            source=str(folder),
            vocabulary=body.vocab_size,
            max_length=max_length,
            batch_size=config.prm_batch_size,
        )

    return OpenPRM(config=raw, load=load)


def _load_model(
    config: PretrainedConfig,
    make_head: Head,
    candidates: Sequence[int],
    files: Mapping[str, Path],
    *,
    source: Path,
    device: torch.device,
    dtype: torch.dtype,
    quantize: str | None,
) -> StepClassifier:
    """The model with every tensor accounted for: what is missing would be random
    numbers, so it is an error.
    """
    head = make_head(config)
    with told_in_a_line(source / "config.json"), torch.device("meta"):
        model = StepClassifier(config, head)
    # older files hold rotary frequencies; a language model's head stays in those of a
    # PRM made from it and is not used
    spare = {
        name for name in files if name.endswith("rotary_emb.inv_freq") or name == "lm_head.weight"
    } - model.state_dict().keys()
    files = {name: path for name, path in files.items() if name not in spare}
    model.quantization = checkpoint.load_quantised(
        model,
        files,
        device=device,
        dtype=dtype,
        source=source,
        quantize=quantize,
        blocks="model.layers.",
        unread=spare,
    )
    # computed from the config, in no file
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    if candidates:
        model.keep_rows(*candidates)
    model.score.float()
    return model.eval().requires_grad_(False)


def _resolve(prm: str) -> Path:
    folder = Path(prm).expanduser()
    if not folder.is_dir() and (prm.startswith((".", "/", "~")) or prm.count("/") != 1):
        raise FileNotFoundError(
            f"prm={prm!r}: no such folder; give a PRM's folder or a hub id such as "
            "Qwen/Qwen2.5-Math-PRM-7B"
        )
    return resolve(prm, option="prm")


def _body_config(folder: Path, raw: Mapping[str, Any]) -> PretrainedConfig:
    if raw.get("model_type") not in CAUSAL:
        raise ValueError(
            f"{folder}: model_type is {raw.get('model_type')!r}, expected one of "
            f"{', '.join(CAUSAL)}: only causal models "
            "can be read, where a score depends on nothing behind it"
        )
    from transformers import AutoConfig

    with told_in_a_line(folder / "config.json"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


@contextmanager
def told_in_a_line(path: Path) -> Iterator[None]:
    """What transformers makes of a config that it cannot use, any kind of exception, as
    ValueError that names the file.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{path}: transformers cannot make a model of it: {first_line(error)}"
        ) from None
