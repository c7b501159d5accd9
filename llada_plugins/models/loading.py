"""Which checkpoint is this, and does every tensor have its place? Folders or hub ids;
safetensors only, no remote code.

Nothing is guessed: a config that the module does not implement, a tensor that is
missing, left over or of another shape is an error that names it, raised from the
headers of the files before any weight is read.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llada_plugins.files.json_files import (
    one_line,
    read_json,
)
from llada_plugins.files.tensors import open_tensors, raise_problems, save_tensors

from .families import FAMILIES
from .fingerprint import fingerprint, signature
from .folder import (
    _quantization_config,
    read_config,
    resolve,
    special_tokens,
    tensor_files,
    tensor_names,
)
from .gptq import PackedLinear, pack_linears, read_packing, replace
from .llada import LLaDA
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

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# as safetensors name them
FLOATING = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}


def _check_shards(files: Mapping[str, Path], unread: Collection[str]) -> None:
    """Raise ValueError where the files hold other tensors than `files`, from an index,
    says, or than are `unread`.
    """
    if not files:  # what is missing is told where a model's tensors are accounted for
        return
    stored = {
        (tensor, path)
        for path in sorted(set(files.values()))
        for tensor in tensor_names(path)
        if tensor not in unread
    }
    problems = [
        f"missing {one_line(tensor)} (the index places it in {path.name})"
        for tensor, path in sorted(files.items() - stored)
    ]
    problems += [
        f"left over {one_line(tensor)} in {path.name} (the index does not name it there)"
        for tensor, path in sorted(stored - files.items())
    ]
    raise_problems(
        f"{next(iter(files.values())).parent}: its files do not hold what its index says", problems
    )


def load_tensors(
    module: nn.Module,
    files: Mapping[str, Path],
    *,
    device: torch.device,
    dtype: torch.dtype,
    source: Path,
    finish: Callable[[str, nn.Module], nn.Module] = lambda name, filled: filled,
    stored_name: Callable[[str], str] = str,
) -> None:
    """Fill a meta-device module from safetensors, every tensor accounted for by name
    and shape before the first is read.

    Parameters are cast to dtype, buffers keep the file's. finish: what takes the place
    of each submodule that holds tensors, called with its name and itself when it is
    filled and before the next is read. stored_name: what the files call a tensor of
    `files`, which has the module's names.
    """
    _account(module, files, source, stored_name)
    by_owner: dict[str, list[str]] = {}
    for name in files:
        owner, _, leaf = name.rpartition(".")
        by_owner.setdefault(owner, []).append(leaf)
    with ExitStack() as stack:
        opened = {
            path: stack.enter_context(open_tensors(path, device))
            for path in sorted(set(files.values()))
        }
        for name, leaves in by_owner.items():
            owner, prefix = module.get_submodule(name), name and f"{name}."
            state = {
                leaf: opened[files[prefix + leaf]].get_tensor(stored_name(prefix + leaf))
                for leaf in leaves
            }
            parameters = dict(owner.named_parameters(recurse=False))
            state = {
                leaf: tensor.to(dtype) if leaf in parameters else tensor
                for leaf, tensor in state.items()
            }
            for leaf, tensor in state.items():
                _check_finite(tensor, prefix + leaf, files[prefix + leaf])
            owner.load_state_dict(state, strict=False, assign=True)
            if (finished := finish(name, owner)) is not owner:
                replace(module, name, finished)


def _account(
    module: nn.Module,
    files: Mapping[str, Path],
    source: Path,
    stored_name: Callable[[str], str],
) -> None:
    """Raise ValueError that lists the tensors which are missing, left over or of
    another shape, from the headers of the files.
    """
    wanted = module.state_dict()
    missing, left_over = wanted.keys() - files.keys(), files.keys() - wanted.keys()
    problems = [f"missing {name}" for name in sorted(map(stored_name, missing))]
    problems += [f"left over {one_line(name)}" for name in sorted(map(stored_name, left_over))]
    by_file: dict[Path, list[str]] = {}
    for name in wanted.keys() & files.keys():
        by_file.setdefault(files[name], []).append(name)
    for path, names in sorted(by_file.items()):
        with open_tensors(path) as file:
            for name in sorted(names):
                expected, stored = wanted[name], file.get_slice(stored_name(name))
                kinds = tuple(FLOATING.values()) if expected.dtype in FLOATING else ("I32",)
                if (shape := tuple(stored.get_shape())) != expected.shape:
                    problems.append(f"{name} is {list(shape)}, expected {list(expected.shape)}")
                elif (kind := stored.get_dtype()) not in kinds:
                    problems.append(f"{name} is {kind}, expected {' or '.join(kinds)}")
    raise_problems(f"{source}: its tensors do not fit its config", problems)


def _check_finite(tensor: Tensor, name: str, path: Path) -> None:
    """Raise ValueError where a value is no number: it would silently spoil every answer
    that meets it.
    """
    if (
        tensor.is_floating_point()
        and tensor.numel()
        and not all(map(math.isfinite, torch.aminmax(tensor)))
    ):
        raise ValueError(
            f"{path}: {name} holds NaN or infinity in {str(tensor.dtype).removeprefix('torch.')}: "
            "the file is damaged, or its "
            "numbers are too large for dtype"
        )


def load_model(
    pretrained: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    quantize: str | None = None,
    peft: str | Path | None = None,
) -> LLaDA:
    """A LLaDA model, ready for inference: called with ids (B, L) it returns logits (B, L, V).

    Its weights are frozen, so that nothing keeps a graph: `model.requires_grad_(True)`
    lets them train, as the training commands do; `model.train()` alone changes nothing.
    pretrained: a folder or a hub id; None is the tiny model shipped in the package.
    device: "auto" takes a GPU if there is one. dtype: "auto" is bfloat16 on a GPU,
    float32 on a CPU. quantize: "int8" or "nf4" quantise the blocks' Linears as they are
    read; a GPTQ checkpoint is dequantised, or with "packed" left in 4 bits. peft:
    folder or hub id of a LoRA adapter, which is merged into the weights, before they
    are quantised. Raises FileNotFoundError, ValueError or ImportError before weights
    are read.
    """
    target = pick_device(device)
    precision = pick_dtype(dtype, target)
    check_quantize(quantize)
    if peft is not None and quantize == "packed":
        raise ValueError(
            f"peft={str(peft)!r} cannot be merged into weights that stay packed: leave "
            "quantize=packed out"
        )
    folder = resolve(pretrained, revision)
    config = read_config(folder)
    family = FAMILIES[config.family]
    files = {family.our_name(name): path for name, path in tensor_files(folder).items()}
    special = special_tokens(folder, config)
    with torch.device("meta"):
        model = family.module(config)
    model.special_tokens = special
    model.origin = read_origin(folder, read_json(folder / "config.json"), config)
    adapter = None if peft is None else Adapter(resolve(peft, option="peft"), model)
    model.quantization = load_quantised(
        model,
        files,
        device=target,
        dtype=precision,
        source=folder,
        quantize=quantize,
        blocks=family.blocks,
        adapter=adapter,
        stored_name=family.stored_name,
    )
    return model.eval().requires_grad_(False)


def load_quantised(
    module: nn.Module,
    files: Mapping[str, Path],
    *,
    device: torch.device,
    dtype: torch.dtype,
    source: Path,
    quantize: str | None,
    blocks: str,
    adapter: Adapter | None = None,
    unread: Collection[str] = (),
    stored_name: Callable[[str], str] = str,
) -> Quantization | None:
    """load_tensors, of a GPTQ checkpoint too, which quantises each Linear whose name
    begins with `blocks` before it reads the next.

    quantize: as for load_model. adapter: merged into each module before that. unread:
    tensors that the files hold beside `files`. stored_name: as for load_tensors. Returns
    what became of the weights, None where they are not quantised.
    """
    check_quantize(quantize)
    packing = read_packing(_quantization_config(source), files, source)
    applies = any(
        isinstance(part, nn.Linear) and name.startswith(blocks)
        for name, part in module.named_modules()
    )
    check_applies(quantize, source, packed=packing is not None, has_linears=applies)
    _check_shards({stored_name(name): path for name, path in files.items()}, unread)
    num_parameters = sum(parameter.numel() for parameter in module.parameters())
    if packing:
        pack_linears(module, files, packing)
    stored: dict[str, bytes] = {}  # signatures before the adapter
    signatures: dict[str, bytes] = {}

    def sign(name: str, owner: nn.Module) -> dict[str, bytes]:
        return {
            f"{name}.{leaf}": signature(f"{name}.{leaf}", tensor)
            for leaf, tensor in owner.named_parameters(recurse=False)
        }

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
        return (
            quantise_linear(plain, quantize)
            if isinstance(plain, nn.Linear) and name.startswith(blocks)
            else plain
        )

    load_tensors(
        module,
        files,
        device=device,
        dtype=dtype,
        source=source,
        finish=finish,
        stored_name=stored_name,
    )
    if adapter is not None:
        adapter.check_backbone(fingerprint(stored))
    if not packing and quantize is None:
        return None
    method = f"gptq 4-bit, {quantize or 'dequantised'}" if packing else describe(quantize)
    return Quantization(method, num_parameters, fingerprint(signatures) if quantize else None)


def save_model(model: LLaDA, folder: Path, extra_config: Mapping[str, Any] | None = None) -> None:
    """Write config.json and model.safetensors in the published layout of the model's
    family; extra_config: further keys of config.json.

    Of a loaded model also what its checkpoint says beside the weights (origin.py): the
    other keys of its config.json, the code that these name, and generation_config.json.
    """
    if (record := quantization_of(model)) and record.fingerprint:
        raise ValueError(
            f"a model in {record.method} is not saved: save the model that it was loaded from, "
            "and quantise at load"
        )
    check_present(model, "a checkpoint")
    folder.mkdir(parents=True, exist_ok=True)
    family = FAMILIES[model.config.family]
    state: dict[str, Tensor] = {
        family.stored_name(name): tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_tensors(state, folder / "model.safetensors")
    write_files(model, folder)
    text = json.dumps({**config_of(model), **(extra_config or {})}, indent=1, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def pick_device(name: str) -> torch.device:
    """'auto' is the first GPU if there is one, else the CPU; a GPU that is asked for
    but absent is an error.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        raise ValueError(
            f"device={name!r}, but torch sees {torch.cuda.device_count()} GPUs; use device=cpu or "
            "auto"
        )
    # accelerate's cpu:0 is one that safetensors refuses
    return device if device.type == "cuda" else torch.device("cpu")


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """'auto' is bfloat16 on a GPU (as the checkpoint is stored), float32 on a CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ValueError(f"dtype must be auto or one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]
