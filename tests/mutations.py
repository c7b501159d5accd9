"""Damaged checkpoints: every one loads and gives finite numbers, or ends in one line
that names a file.

    python -m tests.mutations 50000 [SEED]        (make fuzz)

Each case damages one file of one kind of checkpoint and loads it by the door that users
take. What no reader can see is not looked for: another number of the right kind in a
config, another finite value in a tensor, another word in a vocabulary.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from llada_plugins.methods.policy_head import PolicyHead, load_policy, save_policy
from llada_plugins.methods.router import Router, RouterConfig, load_router, save_router
from llada_plugins.models import text
from llada_plugins.models.fingerprint import backbone_fingerprint
from llada_plugins.models.folder import read_config, special_tokens
from llada_plugins.models.initial import initialise
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.llada_config import LLaDAConfig
from llada_plugins.models.loading import load_model, save_model
from llada_plugins.models.tokenizer import load_tokenizer
from llada_plugins.rewards.process_reward_model import PRMConfig, load_prm
from tests.llada_shape import LLADA
from training.data.byte_tokenizer import EOS, MASK, byte_tokenizer

ALLOWED = (ValueError, OSError, ImportError)
IDS = torch.arange(97, 105)[None]  # (1, L)


class Fault(AssertionError):
    """A damaged checkpoint that ended in another way than it may."""


class Kind(NamedTuple):
    """A kind of checkpoint folder, and how it is loaded."""

    files: tuple[str, ...]  # those that are damaged
    make: Callable[[Path], object]  # writes a good one
    load: Callable[[Path], torch.Tensor | None]  # numbers that it gives


# --- kinds of checkpoints -------------------------------------------------------------


def _shape() -> dict[str, Any]:
    return dict(
        d_model=16,
        n_heads=2,
        n_layers=1,
        mlp_hidden_size=24,
        **LLADA,
    )


def make_model(folder: Path) -> LLaDA:
    ids = byte_tokenizer(folder)
    model = LLaDA(
        LLaDAConfig(
            vocab_size=max(ids.values()) + 1,
            mask_token_id=ids[MASK],
            eos_token_id=ids[EOS],
            **_shape(),
        )
    )
    initialise(model, torch.Generator().manual_seed(0))
    save_model(model, folder, {"training": {"command": "none"}})
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [ids[EOS], ids["<|eot_id|>"]], "temperature": 0.7})
    )
    return model


def make_shards(folder: Path) -> None:
    make_model(folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for number, name in enumerate(names):
        save_file({key: state[key] for key in sorted(state)[number::2]}, folder / name)
    weight_map = {key: names[number % 2] for number, key in enumerate(sorted(state))}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
    )


def make_head(folder: Path) -> None:
    head = PolicyHead(16, 4)
    save_policy(
        head,
        folder / "ups",
        backbone_fingerprint(make_model(folder)),
        {"training": {"command": "none"}},
    )


def make_router(folder: Path) -> None:
    router = Router(RouterConfig(d_model=16, heads=2, max_positions=8))
    save_router(router, folder / "router", backbone_fingerprint(make_model(folder)))


def make_adapter(folder: Path) -> None:
    make_model(folder)
    target = folder / "adapter"
    target.mkdir()
    place = "base_model.model.model.transformer.blocks.0.q_proj"
    save_file(
        {f"{place}.lora_A.weight": torch.ones(2, 16), f"{place}.lora_B.weight": torch.ones(16, 2)},
        target / "adapter_model.safetensors",
    )
    (target / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "r": 2,
                "lora_alpha": 4.0,
                "target_modules": ["q_proj"],
                "bias": "none",
                "use_dora": False,
                "init_lora_weights": True,
                "use_rslora": False,
                "task_type": None,
                "rank_pattern": {},
                "inference_mode": True,
            }
        )
    )


def make_prm(folder: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForTokenClassification

    byte_tokenizer(folder)
    config = Qwen2Config(
        vocab_size=262,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        num_labels=2,
        step_separator="\n",
    )
    Qwen2ForTokenClassification(config).save_pretrained(folder)


def load_folder(folder: Path, **options: Any) -> torch.Tensor:
    model = load_model(folder, device="cpu", **options)
    with torch.inference_mode():
        return model(IDS.clamp(max=model.config.num_embeddings - 1))


def load_words(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    special_tokens(folder, read_config(folder))
    ids = text.encode(tokenizer, "1 + 1 = 2, <|endoftext|> é")
    text.decode(tokenizer, ids, ())
    if tokenizer.chat_template:
        text.render_chat(tokenizer, [{"role": "user", "content": "?"}])


_models: dict[Path, LLaDA] = {}  # the good backbone of a folder, in which only a part is damaged


def _backbone(folder: Path) -> LLaDA:
    if folder not in _models:
        _models[folder] = load_model(folder, device="cpu")
    return _models[folder]


@torch.inference_mode()
def load_head(folder: Path) -> torch.Tensor:
    return load_policy(folder / "ups", _backbone(folder))(torch.ones(1, 3, 16))


@torch.inference_mode()
def load_routed(folder: Path) -> torch.Tensor:
    router = load_router(folder / "router", _backbone(folder))
    return router(torch.ones(1, 3, 16), torch.ones(1, 3, dtype=torch.bool), torch.ones(16), 1)


def load_judge(folder: Path) -> torch.Tensor:
    return torch.tensor(load_prm(PRMConfig(prm=str(folder)), "cpu").score([("1+1?", ["2"])]))


WORDS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
KINDS: dict[str, Kind] = {
    "model": Kind(
        ("config.json", "generation_config.json", "model.safetensors"), make_model, load_folder
    ),
    "shards": Kind(
        ("model.safetensors.index.json", "model-00001-of-00002.safetensors"),
        make_shards,
        load_folder,
    ),
    "tokenizer": Kind(WORDS, make_model, load_words),
    "head": Kind(("ups/ups_config.json", "ups/ups.safetensors"), make_head, load_head),
    "router": Kind(
        ("router/router_config.json", "router/router.safetensors"), make_router, load_routed
    ),
    "adapter": Kind(
        ("adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
        make_adapter,
        lambda folder: load_folder(folder, peft=folder / "adapter"),
    ),
    "prm": Kind(
        ("config.json", "model.safetensors", "tokenizer_config.json"), make_prm, load_judge
    ),
}


# --- kinds of damage ------------------------------------------------------------------

ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    999,
    2**31,
    2**63,
    10**30,
    -(10**400),
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "8",
    "a\nb",
    "\ud800",
    "../x.safetensors",
    "/etc/passwd",
    [],
    {},
    [None],
    [[]],
    ["a", 1],
    {"a": 1},
    {"": None},
    "x" * 10**4,
)


def flip(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def drop(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + data[place + rng.randint(1, 9) :]


def insert(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + rng.randbytes(rng.randint(1, 4)) + data[place:]


def no_utf8(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + b"\xff\xc0" + data[place:]


def overwrite(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return (
        data[:place]
        + (rng.choice((b"\0", b"\xff", b"9", b"-")) * 8)[: len(data) - place]
        + data[place + 8 :]
    )


BYTES = {
    "flipped bit": flip,
    "truncated": cut,
    "bytes missing": drop,
    "bytes inserted": insert,
    "no UTF-8": no_utf8,
    "overwritten": overwrite,
}


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below a JSON value."""
    found: list[tuple[Any, Any]] = []
    for key, inner in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        found += [(value, key), *places(inner)]
    return found


def few_places(value: Any, rng: random.Random) -> tuple[Any, Any]:
    """One of them: near the root as often as anywhere, else a vocabulary would be all
    that is hit.
    """
    near = [(value, key) for key in value]
    return rng.choice(near if rng.random() < 0.5 else places(value))


def odd_value(raw: Any, rng: random.Random) -> None:
    container, key = few_places(raw, rng)
    container[key] = rng.choice(ODD)


def odd_list(raw: Any, rng: random.Random) -> None:
    container, key = few_places(raw, rng)
    container[key] = rng.choice(
        ([container[key]], {"a": container[key]}, str(container[key]), [container[key]] * 2)
    )


def missing(raw: Any, rng: random.Random) -> None:
    container, key = few_places(raw, rng)
    del container[key]


def renamed(raw: Any, rng: random.Random) -> None:
    raw[rng.choice(("x", "a\nb", "rope_scaling", "\ud800", ""))] = raw.pop(rng.choice(list(raw)))


def exchanged(raw: Any, rng: random.Random) -> None:
    (first, one), (second, two) = few_places(raw, rng), few_places(raw, rng)
    first[one], second[two] = (
        json.loads(json.dumps(second[two])),
        json.loads(json.dumps(first[one])),
    )


def deep(raw: Any, rng: random.Random) -> None:
    container, key = few_places(raw, rng)
    for _ in range(rng.choice((3, 200, 900))):
        container[key] = [container[key]]


JSON = {
    "odd value": odd_value,
    "odd container": odd_list,
    "missing key": missing,
    "renamed key": renamed,
    "exchanged values": exchanged,
    "nested deep": deep,
}


def no_object(data: bytes, rng: random.Random) -> bytes:
    return rng.choice(
        (
            b"",
            b"[]",
            b"null",
            b"7",
            b'"a"',
            b"{}",
            b"[" * 10**5,
            b'{"a":' * 10**4,
            b"\xef\xbb\xbf{}",
        )
    )


def twice(data: bytes, rng: random.Random) -> bytes:
    raw = json.loads(data)
    key = rng.choice(list(raw))
    return (
        b"{"
        + f"{json.dumps(key)}: {json.dumps(rng.choice(ODD[:12]))}, ".encode()
        + data.lstrip()[1:]
    )


TEXTS = {"no object": no_object, "key twice": twice}


def header(change: Callable[[Any, random.Random], None]) -> Callable[[bytes, random.Random], bytes]:
    """The same damage to the header of a safetensors file, whose length is then right again."""

    def damage(data: bytes, rng: random.Random) -> bytes:
        (size,) = struct.unpack("<Q", data[:8])
        raw = json.loads(data[8 : 8 + size])
        change(raw, rng)
        encoded = json.dumps(raw).encode()
        return struct.pack("<Q", len(encoded)) + encoded + data[8 + size :]

    return damage


def other_tensor(data: bytes, rng: random.Random) -> bytes:
    """A tensor of another dtype or shape, one more, one less, or one with a number that is none."""
    from safetensors.torch import load, save

    state = load(data)
    name = rng.choice(sorted(state))
    spoilt = state[name].clone()
    spoilt.flatten()[rng.randrange(spoilt.numel())] = rng.choice((float("nan"), float("inf")))
    replaced: dict[str, Any] = {
        "dtype": state[name].to(
            rng.choice(
                (
                    torch.int64,
                    torch.int32,
                    torch.uint8,
                    torch.bool,
                    torch.float8_e4m3fn,
                    torch.float16,
                )
            )
        ),
        "shape": state[name].flatten()[:-1],
        "empty": torch.zeros(0),
        "scalar": torch.tensor(1.0),
        "spoilt": spoilt,
    }
    change = rng.choice([*replaced, "more", "less"])
    if change == "less":
        del state[name]
    else:
        state[rng.choice(("extra", "a\nb")) if change == "more" else name] = replaced.get(
            change, torch.ones(2)
        )
    return save(state)


TENSORS = {
    **{f"header: {name}": header(change) for name, change in JSON.items()},
    "other tensor": other_tensor,
}


def _as_text(
    change: Callable[[Any, random.Random], None],
) -> Callable[[bytes, random.Random], bytes]:
    def damage(data: bytes, rng: random.Random) -> bytes:
        raw = json.loads(data)
        change(raw, rng)
        return json.dumps(raw).encode()

    return damage


def damages(name: str) -> dict[str, Callable[[bytes, random.Random], bytes]]:
    """Every kind of damage to the bytes of a file of that name."""
    if name.endswith(".safetensors"):
        return {**BYTES, **TENSORS}
    return {**BYTES, **TEXTS, **{kind: _as_text(change) for kind, change in JSON.items()}}


def in_its_place(path: Path, kind: str) -> None:
    """Put something else where a file was."""
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "loop of links":
        path.symlink_to(path)
    elif kind == "broken link":
        path.symlink_to(path.with_name("nowhere"))


PLACES = ("absent", "folder", "loop of links", "broken link")


# --- the trial ------------------------------------------------------------------------


def outcome(kind: Kind, folder: Path, name: str) -> str:
    """ "works", or "refused"; Fault for any other end."""
    try:
        numbers = kind.load(folder)
    except ALLOWED as error:
        message = str(error)
        if "\n" in message or not (str(folder) in message or Path(name).name in message):
            raise Fault(
                f"not one line that names a file: {type(error).__name__}: {message[:400]!r}"
            ) from error
        return "refused"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise Fault("".join(traceback.format_exception(error))[-1500:]) from error
    if numbers is not None and not bool(torch.isfinite(numbers).all()):
        raise Fault("it loads, and its numbers are not finite")
    return "works"


def restore(path: Path, data: bytes) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def trials(name: str, number: int, seed: int = 0) -> Iterator[tuple[str, str, str]]:
    """(file, damage, outcome) of so many damaged checkpoints of a kind."""
    kind, rng = KINDS[name], random.Random(f"{name} {seed}")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        kind.make(folder)
        good = {file: (folder / file).read_bytes() for file in kind.files}
        if outcome(kind, folder, "") != "works":
            raise Fault(f"the undamaged {name} is refused")
        for _ in range(number):
            file = rng.choice(kind.files)
            known = damages(file)
            damage = rng.choice([*known, *PLACES])
            state = rng.getstate()
            try:
                if damage in known:
                    (folder / file).write_bytes(known[damage](good[file], rng))
                else:
                    in_its_place(folder / file, damage)
                yield file, damage, outcome(kind, folder, file)
            except Fault as fault:
                kept = Path(tempfile.mkdtemp(prefix="mutation-"))
                shutil.copytree(folder, kept, symlinks=True, dirs_exist_ok=True)
                raise Fault(
                    f"{file}, {damage} (kept in {kept}, state {hash(state)}): {fault}"
                ) from fault
            finally:
                restore(folder / file, good[file])
        _models.pop(folder, None)


def tried(
    number: int, seed: int = 0, kinds: Mapping[str, Kind] = KINDS
) -> Counter[tuple[str, str, str]]:
    """How often each (kind of file, damage, outcome) was met among so many, shared
    equally by the kinds.
    """
    counts: Counter[tuple[str, str, str]] = Counter()
    for name in kinds:
        for file, damage, end in trials(name, -(-number // len(kinds)), seed):
            counts[f"{name}: {file}", damage, end] += 1
    return counts


def table(counts: Counter[tuple[str, str, str]]) -> str:
    """Counts by file and by damage, as lines of text."""
    lines = []
    for place, title in enumerate(("file", "damage")):
        lines.append(f"{title:52} tried  works  refused")
        for name in sorted({key[place] for key in counts}):
            ends = {
                end: sum(
                    count for key, count in counts.items() if key[place] == name and key[2] == end
                )
                for end in ("works", "refused")
            }
            lines.append(
                f"{name:52} {sum(ends.values()):5}  {ends['works']:5}  {ends['refused']:7}"
            )
    return "\n".join([*lines, f"{'all':52} {sum(counts.values()):5}"])


def main(argv: list[str]) -> int:
    logging.disable(logging.WARNING)
    began = time.perf_counter()
    print(table(tried(int(argv[0]) if argv else 2000, int(argv[1]) if len(argv) > 1 else 0)))
    print(f"{time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
