"""Process reward models (PRMs) from their files, checked before weights are read.

families.py says how each of the four published families spells a solution and what head
it has; step_scorer.py runs the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

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
from llada_plugins.models import text
from llada_plugins.models.folder import resolve, tensor_files
from llada_plugins.models.llada_config import LAYERS, TOKENS, WIDTH
from llada_plugins.models.placement import pick_device, pick_dtype
from llada_plugins.models.tokenizer import load_tokenizer
from llada_plugins.models.weights import load_weights

from .families import FAMILIES, Head, find_family, one_token
from .prm_config import PRMConfig, family_options
from .step_scorer import StepClassifier, StepScorer, choice_head

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


@dataclass(frozen=True, kw_only=True)
class OpenPRM:
    """A PRM whose files are checked, before its weights are read."""

    config: Mapping[str, Any]  # its config.json
    load: Callable[[torch.device | str], StepScorer]


def load_prm(config: PRMConfig, device: torch.device | str = "auto") -> StepScorer:
    """The PRM of a folder or hub id, without remote code.

    Raises FileNotFoundError or ValueError before weights are read.
    """
    return open_prm(config).load(device)


def open_prm(config: PRMConfig) -> OpenPRM:
    """Check all of a PRM but its tensors' shapes.

    Raises FileNotFoundError or ValueError, which says in a line what is wrong.
    """
    if config.prm is None:
        raise ValueError(
            "llada_prm needs a process reward model: pass prm=FOLDER or prm=HUB_ID, such as "
            "prm=Qwen/Qwen2.5-Math-PRM-7B"
        )
    folder = prm_folder(config.prm)
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
    tokenizer = load_tokenizer(folder)
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
        target = pick_device(str(device))
        model = _load_model(
            body,
            family.head,
            candidates,
            files,
            source=folder,
            device=target,
            dtype=pick_dtype(config.prm_dtype, target),
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
    """The model with every tensor accounted for.

    A tensor that is missing would be random numbers, so it is an error.
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
    model.quantization = load_weights(
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
        model.score = choice_head(model.vocabulary_weight(), *candidates)
        if hasattr(model, "lm_head"):
            del model.lm_head
    model.score.float()
    return model.eval().requires_grad_(False)


def prm_folder(prm: str) -> Path:
    """Where the PRM of a folder's name or a hub id is; a hub id is asked for at the hub.

    Raises FileNotFoundError where it is not there.
    """
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
            f"{', '.join(CAUSAL)}: only causal models can be read, where a score depends on "
            "nothing after it"
        )
    from transformers import AutoConfig

    with told_in_a_line(folder / "config.json"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


@contextmanager
def told_in_a_line(path: Path) -> Iterator[None]:
    """Any exception that transformers raises on a config, as ValueError that names the file."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{path}: transformers cannot make a model of it: {first_line(error)}"
        ) from None
