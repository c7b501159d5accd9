"""Which checkpoint is this, and does every tensor have its place? Folders or hub ids; safetensors only, no remote code.

Nothing is guessed: a config that the module does not implement, a tensor that is missing, left over or of another shape
is an error that names it, raised from the headers of the files before any weight is read.
"""
from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace as with_fields
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

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

from .bitower import MARK, BiTowerLLaDA
from .gptq import PackedLinear, pack_linears, read_packing, replace
from .llada import ENDS, LLaDA, LLaDAConfig, SpecialTokens, token_ids, unknown_fields
from .lora import Adapter
from .origin import config_of, read_origin, write_files
from .quantization import (
    Quantization,
    check_applies,
    check_quantize,
    describe,
    quantise_linear,
    quantization_of,
)
from .submodules import check_present
from .text import read_tokenizer_files

logger = logging.getLogger(__name__)

TINY = Path(__file__).parents[1] / "tiny" / "sudoku4"        # the model shipped in the package that is taken where none is named
DEFAULT = "tiny"
SHIPPED = {DEFAULT: TINY, "sudoku4": TINY, "nim": TINY.parent / "nim"}
ARCHITECTURES = {"LLaDAModelLM"}                          # by architecture, not model_type: LLaDA-MoE says "llada" too
MASK_NAMES = ("<|mdm_mask|>", "<[MASK]>", "[MASK]", "<mask>")
EOT_NAMES = ("<|eot_id|>",)
BLOCKS = "model.transformer.blocks."                      # where the Linears are that quantize= changes
FINGERPRINT_VALUES = 64        # of each tensor: enough to tell two trained models apart, and 20 kB to read of an 8B model
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FLOATING = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}        # as safetensors name them

CONFIG = record(optional={"architectures": nullable(list_of(TEXT)), "quantization_config": nullable(record())})
INDEX = record({"weight_map": table_of(Kind("a .safetensors file in the folder", lambda name: _stays_inside(name)))})
# Of generation_config.json the ends of answers are read. Options of sampling (temperature, top_p, max_length …) belong to a run and
# have no effect; what processes logits or ends answers in a way that no option here has is refused unless it asks for nothing.
GENERATION = record(optional={"eos_token_id": ENDS})
NOT_GENERATED = {
    **dict.fromkeys((
        "suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids", "constraints", "sequence_bias",
        "forced_bos_token_id", "forced_eos_token_id", "forced_decoder_ids", "stop_strings", "exponential_decay_length_penalty",
        "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens", "watermarking_config"), 0),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "guidance_scale"), 1),
}


def resolve(pretrained: str | Path | None, revision: str | None = None, option: str = "pretrained") -> Path:
    """The local folder of a checkpoint: a shipped model by name ("tiny" for None), a folder, or a hub id (downloaded or from the cache).

    option: what messages call it.
    """
    if pretrained is None or str(pretrained) in SHIPPED:
        return SHIPPED[str(pretrained or DEFAULT)]
    folder = Path(pretrained).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision!r} has no effect on a folder ({folder}): leave it out, or give a hub id")
        return folder
    text = str(pretrained)
    if folder.exists() or text.startswith((".", "/", "~")) or text.count("/") != 1:
        raise FileNotFoundError(f"{option}={text!r}: no such folder; give a checkpoint folder, a hub id such as GSAI-ML/LLaDA-8B-Instruct, "
                                f"or a model shipped in the package: {', '.join(SHIPPED)}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(text, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]))
    except Exception as error:        # offline, unknown id, gated: many types, one remedy
        raise FileNotFoundError(
            f"{option}={text!r}: no such folder, and the hub did not deliver it ({type(error).__name__}: {first_line(error)}); "
            "download it where there is a network and pass the folder") from error


def read_config(folder: Path) -> LLaDAConfig:
    """The model's config; refuses foreign architectures and switches that the module does not implement.

    Ids that generation_config.json names as ends stand behind those of config.json.
    """
    path = folder / "config.json"
    raw = read_json(path, CONFIG)
    architectures = raw.get("architectures") or []
    if not ARCHITECTURES & set(architectures) and not is_bitower(folder):
        raise ValueError(f"{path}: architectures is {short(architectures)}, expected one of {sorted(ARCHITECTURES)}: not a LLaDA checkpoint")
    config = LLaDAConfig.from_dict(raw, str(path))
    if unknown := unknown_fields(raw):
        logger.warning("%s has fields that published LLaDA configs do not have, and they are not read: %s", path, ", ".join(map(one_line, unknown)))
    path = folder / "generation_config.json"
    if is_there(path):
        ends = token_ids([*config.ends, *_generation_ends(path)])
        config = with_fields(config, eos_token_id=ends[0] if ends else None, more_eos_token_ids=ends[1:])
        config.check(str(path))
    return config


def _generation_ends(path: Path) -> tuple[int, ...]:
    """The ids after which generation_config.json ends an answer."""
    raw = read_json(path, GENERATION)
    for name, nothing in NOT_GENERATED.items():
        if raw.get(name) not in (None, nothing, 0, [], {}):
            raise ValueError(f"{path}: {name} is {short(raw[name])}, which has no effect here: remove it there, and use the options of "
                             "a run instead (logits_eos_inf, stop strings of the task)")
    return token_ids(raw.get("eos_token_id"))


def _stays_inside(name: Any) -> bool:
    """Is it the name of a shard that lies in the folder? By the name alone: where a hub cache links to is its own business."""
    if not isinstance(name, str) or not name.endswith(".safetensors") or "\0" in name or PureWindowsPath(name).anchor:
        return False
    return not PurePosixPath(name).is_absolute() and ".." not in PureWindowsPath(name).parts


def tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> file, from the index of a sharded checkpoint or the header of model.safetensors."""
    index = folder / "model.safetensors.index.json"
    if is_there(index):
        weight_map = read_json(index, INDEX)["weight_map"]
        absent = sorted({name for name in weight_map.values() if not is_there(folder / name)})
        if absent:
            raise FileNotFoundError(f"{folder}: the index names {', '.join(map(one_line, absent[:8]))}, not in the folder: the download is incomplete")
        return {tensor: folder / name for tensor, name in weight_map.items()}
    single = folder / "model.safetensors"
    if not is_there(single):
        raise FileNotFoundError(f"{folder} has neither model.safetensors nor model.safetensors.index.json; only safetensors are read, never pickles")
    return {name: single for name in tensor_names(single)}


def _check_shards(files: Mapping[str, Path], unread: Collection[str]) -> None:
    """Raise ValueError where the files hold other tensors than `files`, from an index, says, or than are `unread`."""
    if not files:        # what is missing is told where a model's tensors are accounted for
        return
    stored = {(tensor, path) for path in sorted(set(files.values())) for tensor in tensor_names(path) if tensor not in unread}
    problems = [f"missing {one_line(tensor)} (the index places it in {path.name})" for tensor, path in sorted(files.items() - stored)]
    problems += [f"left over {one_line(tensor)} in {path.name} (the index does not name it there)"
                 for tensor, path in sorted(stored - files.items())]
    _raise_problems(f"{next(iter(files.values())).parent}: its files do not hold what its index says", problems)


def _raise_problems(beginning: str, problems: Sequence[str]) -> None:
    if problems:
        more = f" … and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(f"{beginning}: {'; '.join(problems[:8])}{more}")


def tensor_names(path: Path) -> list[str]:
    """The tensors of one safetensors file, from its header."""
    if not is_there(path):
        raise FileNotFoundError(f"{path.parent} has no {path.name}")
    with _open(path) as file:
        return list(file.keys())


def is_bitower(folder: Path) -> bool:
    """Does the checkpoint hold RemeDi's policy tower? By its tensors: its uploads disagree on model_type and architectures."""
    try:
        return any(name.startswith(MARK) for name in tensor_files(folder))
    except FileNotFoundError:        # reported where the tensors are needed
        return False


def load_tensors(module: nn.Module, files: Mapping[str, Path], *, device: torch.device, dtype: torch.dtype, source: Path,
                 finish: Callable[[str, nn.Module], nn.Module] = lambda name, filled: filled) -> None:
    """Fill a meta-device module from safetensors, every tensor accounted for by name and shape before the first is read.

    Parameters are cast to dtype, buffers keep the file's. finish: what takes the place of each submodule that holds tensors, called with
    its name and itself when it is filled and before the next is read.
    """
    _account(module, files, source)
    by_owner: dict[str, list[str]] = {}
    for name in files:
        owner, _, leaf = name.rpartition(".")
        by_owner.setdefault(owner, []).append(leaf)
    with ExitStack() as stack:
        opened = {path: stack.enter_context(_open(path, device)) for path in sorted(set(files.values()))}
        for name, leaves in by_owner.items():
            owner, prefix = module.get_submodule(name), name and f"{name}."
            state = {leaf: opened[files[prefix + leaf]].get_tensor(prefix + leaf) for leaf in leaves}
            parameters = dict(owner.named_parameters(recurse=False))
            state = {leaf: tensor.to(dtype) if leaf in parameters else tensor for leaf, tensor in state.items()}
            for leaf, tensor in state.items():
                _check_finite(tensor, prefix + leaf, files[prefix + leaf])
            owner.load_state_dict(state, strict=False, assign=True)
            if (finished := finish(name, owner)) is not owner:
                replace(module, name, finished)


def _account(module: nn.Module, files: Mapping[str, Path], source: Path) -> None:
    """Raise ValueError that lists the tensors which are missing, left over or of another shape, from the headers of the files."""
    wanted = module.state_dict()
    problems = [f"missing {name}" for name in sorted(wanted.keys() - files.keys())]
    problems += [f"left over {one_line(name)}" for name in sorted(files.keys() - wanted.keys())]
    by_file: dict[Path, list[str]] = {}
    for name in wanted.keys() & files.keys():
        by_file.setdefault(files[name], []).append(name)
    for path, names in sorted(by_file.items()):
        with _open(path) as file:
            for name in sorted(names):
                expected, stored = wanted[name], file.get_slice(name)
                kinds = tuple(FLOATING.values()) if expected.dtype in FLOATING else ("I32",)
                if (shape := tuple(stored.get_shape())) != expected.shape:
                    problems.append(f"{name} is {list(shape)}, expected {list(expected.shape)}")
                elif (kind := stored.get_dtype()) not in kinds:
                    problems.append(f"{name} is {kind}, expected {' or '.join(kinds)}")
    _raise_problems(f"{source}: its tensors do not fit its config", problems)


def _check_finite(tensor: Tensor, name: str, path: Path) -> None:
    """Raise ValueError where a value is no number: it would silently spoil every answer that meets it."""
    if tensor.is_floating_point() and tensor.numel() and not all(map(math.isfinite, torch.aminmax(tensor))):
        raise ValueError(f"{path}: {name} holds NaN or infinity in {str(tensor.dtype).removeprefix('torch.')}: the file is damaged, or its "
                         "numbers are too large for dtype")


def load_model(pretrained: str | Path | None = None, *, device: str = "auto", dtype: str = "auto", revision: str | None = None,
               quantize: str | None = None, peft: str | Path | None = None) -> LLaDA:
    """A LLaDA model, ready for inference: called with ids (B, L) it returns logits (B, L, V).

    Its weights are frozen, so that nothing keeps a graph: `model.requires_grad_(True)` lets them train, as the training commands do;
    `model.train()` alone changes nothing.
    pretrained: a folder or a hub id; None is the tiny model shipped in the package. device: "auto" takes a GPU if there is one.
    dtype: "auto" is bfloat16 on a GPU, float32 on a CPU. quantize: "int8" or "nf4" quantise the blocks' Linears as they are read; a GPTQ
    checkpoint is dequantised, or with "packed" left in 4 bits. peft: folder or hub id of a LoRA adapter, which is merged into the weights,
    before they are quantised. Raises FileNotFoundError, ValueError or ImportError before weights are read.
    """
    target = pick_device(device)
    precision = pick_dtype(dtype, target)
    check_quantize(quantize)
    if peft is not None and quantize == "packed":
        raise ValueError(f"peft={str(peft)!r} cannot be merged into weights that stay packed: leave quantize=packed out")
    folder = resolve(pretrained, revision)
    config = read_config(folder)
    files = tensor_files(folder)
    special = special_tokens(folder, config)
    with torch.device("meta"):
        model = BiTowerLLaDA(config) if is_bitower(folder) else LLaDA(config)
    model.special_tokens = special
    model.origin = read_origin(folder, read_json(folder / "config.json"), config)
    adapter = None if peft is None else Adapter(resolve(peft, option="peft"), model)
    model.quantization = load_quantised(model, files, device=target, dtype=precision, source=folder, quantize=quantize, blocks=BLOCKS,
                                        adapter=adapter)
    return model.eval().requires_grad_(False)


def load_quantised(module: nn.Module, files: Mapping[str, Path], *, device: torch.device, dtype: torch.dtype, source: Path,
                   quantize: str | None, blocks: str, adapter: Adapter | None = None,
                   unread: Collection[str] = ()) -> Quantization | None:
    """load_tensors, of a GPTQ checkpoint too, which quantises each Linear whose name begins with `blocks` before it reads the next.

    quantize: as for load_model. adapter: merged into each module before that. unread: tensors that the files hold beside `files`.
    Returns what became of the weights, None where they are not quantised.
    """
    check_quantize(quantize)
    packing = read_packing(_quantization_config(source), files, source)
    applies = any(isinstance(part, nn.Linear) and name.startswith(blocks) for name, part in module.named_modules())
    check_applies(quantize, source, packed=packing is not None, has_linears=applies)
    _check_shards(files, unread)
    num_parameters = sum(parameter.numel() for parameter in module.parameters())
    if packing:
        pack_linears(module, files, packing)
    stored: dict[str, bytes] = {}            # signatures before the adapter
    signatures: dict[str, bytes] = {}

    def sign(name: str, owner: nn.Module) -> dict[str, bytes]:
        return {f"{name}.{leaf}": signature(f"{name}.{leaf}", tensor) for leaf, tensor in owner.named_parameters(recurse=False)}

    def finish(name: str, filled: nn.Module) -> nn.Module:
        if isinstance(filled, PackedLinear):
            filled.check(f"{source}: {name}")
        plain = filled.unpacked(dtype) if isinstance(filled, PackedLinear) else filled
        if adapter is not None:
            stored.update(sign(name, plain))
            adapter.merge(name, plain)
        if quantize is None:
            return plain
        signatures.update(sign(name, plain))
        if quantize == "packed":
            return filled
        return quantise_linear(plain, quantize) if isinstance(plain, nn.Linear) and name.startswith(blocks) else plain

    load_tensors(module, files, device=device, dtype=dtype, source=source, finish=finish)
    if adapter is not None:
        adapter.check_backbone(fingerprint(stored))
    if not packing and quantize is None:
        return None
    method = f"gptq 4-bit, {quantize or 'dequantised'}" if packing else describe(quantize)
    return Quantization(method, num_parameters, fingerprint(signatures) if quantize else None)


def signature(name: str, tensor: Tensor) -> bytes:
    """What a tensor contributes to a fingerprint: name, shape, and first values in bfloat16, whatever dtype it is loaded in."""
    values = tensor.detach().flatten()[:FINGERPRINT_VALUES].to(torch.bfloat16).float().cpu()
    return f"{name}{tuple(tensor.shape)}".encode() + values.numpy().tobytes()


def fingerprint(signatures: Mapping[str, bytes]) -> str:
    """Identifies weights by the signatures of all tensors."""
    return hashlib.sha256(b"".join(signatures[name] for name in sorted(signatures))).hexdigest()[:16]


def _quantization_config(folder: Path) -> dict[str, Any] | None:
    """What a checkpoint says of its quantisation: in config.json, or in the file of its own that AutoGPTQ writes."""
    path = folder / "quantize_config.json"
    return read_json(folder / "config.json", CONFIG).get("quantization_config") or (read_json(path) if is_there(path) else None)


def save_model(model: LLaDA, folder: Path, extra_config: Mapping[str, Any] | None = None) -> None:
    """Write config.json and model.safetensors in the published layout; extra_config: further keys of config.json.

    Of a loaded model also what its checkpoint says beside the weights (origin.py): the other keys of its config.json, the code that
    these name, and generation_config.json.
    """
    if (record := quantization_of(model)) and record.fingerprint:
        raise ValueError(f"a model in {record.method} is not saved: save the model that it was loaded from, and quantise at load")
    check_present(model, "a checkpoint")
    folder.mkdir(parents=True, exist_ok=True)
    state: dict[str, Tensor] = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_tensors(state, folder / "model.safetensors")
    write_files(model, folder)
    text = json.dumps({**config_of(model), **(extra_config or {})}, indent=1, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def save_tensors(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file that others may read: the library gives it mode 0600, whatever the umask."""
    part = path.with_name(f".{path.name}")        # a process that is killed leaves the file as it was
    try:
        save_file(dict(state), part, metadata={"format": "pt", **(metadata or {})})
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def special_tokens(folder: Path, config: LLaDAConfig, mask_id: int | None = None) -> SpecialTokens | None:
    """Mask, EOS and EoT ids: from config, what it lacks by name from the tokenizer's files; None if no mask is known.

    An eos_token of the tokenizer that config does not name ends answers as well.
    """
    files = read_tokenizer_files(folder)
    ids, named = files.added, files.id_of("eos_token")
    mask = next((token for token in (mask_id, config.mask_token_id, *(ids.get(name) for name in MASK_NAMES)) if token is not None), None)
    if mask is None:
        return None
    eos, *more = token_ids([*config.ends, named]) or [None]
    for name, token in (("mask token", mask), ("eos_token", named or 0)):
        if not 0 <= token < config.num_embeddings:
            raise ValueError(f"{folder}: the {name}'s id {token} is outside the vocabulary of {config.num_embeddings}")
    eot = next((ids[name] for name in EOT_NAMES if name in ids), None)
    return SpecialTokens(mask, eos, eot, tuple(more))


def pick_device(name: str) -> torch.device:
    """'auto' is the first GPU if there is one, else the CPU; a GPU that is asked for but absent is an error."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"device={name!r}, but torch sees {torch.cuda.device_count()} GPUs; use device=cpu or auto")
    return device if device.type == "cuda" else torch.device("cpu")        # accelerate's cpu:0 is one that safetensors refuses


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """'auto' is bfloat16 on a GPU (as the checkpoint is stored), float32 on a CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ValueError(f"dtype must be auto or one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


def stored_dtype(folder: Path) -> str:
    """The dtype of a checkpoint's first tensor, by its name in DTYPES; float32 for what has none of these."""
    name, path = next(iter(tensor_files(folder).items()))
    with _open(path) as file:
        return {"BF16": "bfloat16", "F16": "float16"}.get(file.get_slice(name).get_dtype(), "float32")


def _open(path: Path, device: torch.device | str = "cpu") -> Any:
    try:
        return safe_open(path, "pt", device=str(device))
    except Exception as error:        # safetensors raises its own type for a torn or foreign file
        raise ValueError(f"{path} is not a readable safetensors file: {first_line(error)}") from None

