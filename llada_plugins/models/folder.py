"""What a checkpoint's folder holds, read from its small files and from headers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace as with_fields
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from llada_plugins.files.json_files import (
    TEXT,
    Kind,
    first_line,
    is_there,
    list_of,
    nullable,
    one_line,
    read_json,
    record,
    short,
    table_of,
)
from llada_plugins.files.tensors import open_tensors

from .families import FAMILIES, recognise
from .llada import LLaDA
from .llada_config import ENDS, LLaDAConfig, token_ids
from .special_tokens import SpecialTokens
from .tokenizer_files import read_tokenizer_files

logger = logging.getLogger(__name__)

# the model shipped in the package that is taken where none is named
TINY = Path(__file__).parents[1] / "tiny" / "sudoku4"
DEFAULT = "tiny"
SHIPPED = {DEFAULT: TINY, "sudoku4": TINY, "nim": TINY.parent / "nim"}
CONFIG = record(
    optional={"architectures": nullable(list_of(TEXT)), "quantization_config": nullable(record())}
)
# Of generation_config.json the ends of answers are read. Options of sampling
# (temperature, top_p, max_length …) belong to a run and have no effect. What processes
# logits or ends answers in a way that no option here has is refused, unless it asks for
# nothing: for null, 0, or an empty value, and for 1 where it is a factor.
GENERATION = record(optional={"eos_token_id": ENDS})
NO_EFFECT = (
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "force_words_ids",
    "constraints",
    "sequence_bias",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "forced_decoder_ids",
    "stop_strings",
    "exponential_decay_length_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "min_length",
    "min_new_tokens",
    "watermarking_config",
)
FACTORS = ("repetition_penalty", "encoder_repetition_penalty", "guidance_scale")


def resolve(
    pretrained: str | Path | None,
    revision: str | None = None,
    option: str = "pretrained",
    download: Mapping[str, Any] = {},
) -> Path:
    """The local folder of a checkpoint.

    pretrained: a shipped model by name ("tiny" for None), a folder, or a hub id, which is
    downloaded or taken from the cache. option: what messages call it. download: further
    arguments of snapshot_download. ValueError on what is no name, and on a revision of
    what has none.
    """
    pretrained = DEFAULT if pretrained is None else pretrained
    if not isinstance(pretrained, str | Path) or not str(pretrained):
        raise ValueError(
            f"{option} must be a checkpoint folder, a hub id, or one of {', '.join(SHIPPED)}, got "
            f"{pretrained!r}"
        )
    if revision is not None and not isinstance(revision, str):
        raise ValueError(f"revision must be a branch, tag or commit of a hub id, got {revision!r}")
    text, folder = str(pretrained), Path(pretrained).expanduser()
    if text in SHIPPED:
        _check_no_revision(revision, f"{text!r}, a model shipped in the package")
        return SHIPPED[text]
    if folder.is_dir():
        _check_no_revision(revision, f"a folder ({folder})")
        return folder
    if folder.exists() or text.startswith((".", "/", "~")) or text.count("/") != 1:
        raise FileNotFoundError(
            f"{option}={text!r}: no such folder; give a checkpoint folder, a hub id such as "
            f"GSAI-ML/LLaDA-8B-Instruct, or a model shipped in the package: {', '.join(SHIPPED)}"
        )
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(snapshot_download(text, revision=revision, allow_patterns=patterns, **download))
    except Exception as error:  # offline, unknown id, gated: many types, one remedy
        raise FileNotFoundError(
            f"{option}={text!r}: no such folder, and the hub did not deliver it "
            f"({type(error).__name__}: {first_line(error)}); download it where there is a "
            "network and pass the folder"
        ) from error


def _check_no_revision(revision: str | None, what: str) -> None:
    if revision is not None:
        raise ValueError(
            f"revision={revision!r} has no effect on {what}: leave it out, or give a hub id"
        )


def read_config(folder: Path) -> LLaDAConfig:
    """The model's config, with the ends of answers that generation_config.json adds.

    Raises ValueError on foreign architectures, and on switches that no module implements.
    """
    path = folder / "config.json"
    raw = read_json(path, CONFIG)
    name = recognise(raw.get("architectures") or [], _known_tensors(folder), path)
    family = FAMILIES[name]
    config = with_fields(family.read_config(raw, str(path)), family=name)
    if unknown := family.unknown_fields(raw):
        logger.warning(
            "%s has fields that are not read, which published configs do not have like this: %s",
            path,
            ", ".join(map(one_line, unknown)),
        )
    if family.block_field and raw.get(family.block_field) is None:
        logger.warning(
            "%s states no %s, so blocks are of %s tokens: write it there where the model's name "
            "says another number (-b16)",
            path,
            family.block_field,
            config.block_length,
        )
    path = folder / "generation_config.json"
    if is_there(path):
        ends = token_ids([*config.ends, *_generation_ends(path)])
        config = with_fields(
            config, eos_token_id=ends[0] if ends else None, more_eos_token_ids=ends[1:]
        )
        config.check(str(path))
    return config


def _generation_ends(path: Path) -> tuple[int, ...]:
    """The ids after which generation_config.json ends an answer."""
    raw = read_json(path, GENERATION)
    for name in (*NO_EFFECT, *FACTORS):
        nothing = 1 if name in FACTORS else 0
        if raw.get(name) not in (None, nothing, 0, [], {}):
            raise ValueError(
                f"{path}: {name} is {short(raw[name])}, which has no effect here: remove it "
                "there, and use the options of a run instead (logits_eos_inf, stop strings of "
                "the task)"
            )
    return token_ids(raw.get("eos_token_id"))


def _stays_inside(name: Any) -> bool:
    """Is it the name of a shard that lies in the folder?

    It is judged by the name alone: where a hub cache links to is its own business.
    """
    if not isinstance(name, str) or not name.endswith(".safetensors") or "\0" in name:
        return False
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
    return not absolute and ".." not in PureWindowsPath(name).parts


SHARD = Kind("a .safetensors file in the folder", _stays_inside)
INDEX = record({"weight_map": table_of(SHARD)})


def tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> file, from the index of shards or the header of model.safetensors."""
    index = folder / "model.safetensors.index.json"
    if is_there(index):
        weight_map = read_json(index, INDEX)["weight_map"]
        absent = sorted({name for name in weight_map.values() if not is_there(folder / name)})
        if absent:
            raise FileNotFoundError(
                f"{folder}: the index names {', '.join(map(one_line, absent[:8]))}, not in the "
                "folder: the download is incomplete"
            )
        return {tensor: folder / name for tensor, name in weight_map.items()}
    single = folder / "model.safetensors"
    if not is_there(single):
        raise FileNotFoundError(
            f"{folder} has neither model.safetensors nor model.safetensors.index.json; only "
            "safetensors are read, never pickles"
        )
    return dict.fromkeys(tensor_names(single), single)


def tensor_names(path: Path) -> list[str]:
    """The tensors of one safetensors file, from its header."""
    if not is_there(path):
        raise FileNotFoundError(f"{path.parent} has no {path.name}")
    with open_tensors(path) as file:
        return list(file.keys())


def _known_tensors(folder: Path) -> list[str]:
    """The names of the stored tensors; none where files are absent or cannot be read."""
    try:
        return list(tensor_files(folder))
    except (OSError, ValueError):  # reported where the tensors are needed
        return []


def quantization_config(folder: Path) -> dict[str, Any] | None:
    """What a checkpoint says of its quantisation; None where it says nothing."""
    said = read_json(folder / "config.json", CONFIG).get("quantization_config")
    if said:
        return dict(said)
    path = folder / "quantize_config.json"  # which AutoGPTQ writes
    return read_json(path) if is_there(path) else None


def special_tokens(
    folder: Path, config: LLaDAConfig, mask_id: int | None = None
) -> SpecialTokens | None:
    """The ids of the mask and of the ends of answers; None if no mask is known.

    They come from the config, what it lacks by name from the tokenizer's files, and what
    these lack from the family. An eos_token of the tokenizer that the config does not name
    ends answers as well. mask_id: goes before all of these.
    """
    files, family = read_tokenizer_files(folder), FAMILIES[config.family]
    ids, named = files.added, files.id_of("eos_token")
    by_name = [ids.get(name) for name in family.mask_names]
    candidates = (mask_id, config.mask_token_id, *by_name, _published(family.mask_id, config))
    mask = next((token for token in candidates if token is not None), None)
    if mask is None:
        return None
    ends = token_ids([*config.ends, named]) or token_ids(_published(family.eos_id, config))
    for name, token in (("mask token", mask), ("eos_token", named or 0)):
        if not 0 <= token < config.num_embeddings:
            raise ValueError(
                f"{folder}: the {name}'s id {token} is outside the vocabulary of "
                f"{config.num_embeddings}"
            )
    eot = next((ids[name] for name in family.eot_names if name in ids), None)
    return SpecialTokens(mask, ends[0] if ends else None, eot, ends[1:])


def _published(token: int | None, config: LLaDAConfig) -> int | None:
    """A published id, of a model whose vocabulary has it: a test's smaller one has not."""
    return token if token is not None and token < config.num_embeddings else None


def stored_dtype(folder: Path) -> str:
    """The name in DTYPES of a checkpoint's first tensor's dtype; float32 where it has none."""
    name, path = next(iter(tensor_files(folder).items()))
    with open_tensors(path) as file:
        stored = file.get_slice(name).get_dtype()
    return {"BF16": "bfloat16", "F16": "float16"}.get(stored, "float32")


def known_special_tokens(model: LLaDA) -> SpecialTokens:
    """The checkpoint's special ids, or an error that says how to give the mask's."""
    if model.special_tokens is not None:
        return model.special_tokens
    if model.config.mask_token_id is None:
        raise ValueError(
            "the checkpoint names no mask token: config.json has no mask_token_id; pass "
            "special=SpecialTokens(mask=…)"
        )
    return SpecialTokens(
        model.config.mask_token_id,
        model.config.eos_token_id,
        more_eos=model.config.more_eos_token_ids,
    )
