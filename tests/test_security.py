"""Hostile checkpoints, data and templates; and no network unless a hub id is given.

Damage by chance is tests/mutations.py's. Here somebody means it.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from llada_plugins.engine.engine import Engine
from llada_plugins.engine.request import Request
from llada_plugins.models.folder import TINY

ROOT = Path(__file__).parents[1]
CONNECTS = "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"
# imported by every Python that starts with its folder in PYTHONPATH, children included
WATCH = f"""
import os, sys
def note(event, args):
    local = event == "socket.connect" and isinstance(args[1], (str, bytes))  # a socket file
    if event in {CONNECTS} and not local:
        with open(os.environ["SOCKETS_SEEN"], "a") as file:
            file.write(f"{{event}} {{args[1:]}}\\n")
sys.addaudithook(note)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    return Path(shutil.copytree(TINY, tmp_path / "checkpoint"))


def run_watched(arguments: list[str], tmp_path: Path) -> tuple[int, str]:
    """Exit status, and what looked for the network, of a command that may do so."""
    watch = tmp_path / "watch"
    watch.mkdir()
    (watch / "sitecustomize.py").write_text(WATCH)
    seen = tmp_path / "seen"
    environment = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
    environment |= {"PYTHONPATH": f"{watch}{os.pathsep}{ROOT}", "SOCKETS_SEEN": str(seen)}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    return done.returncode, seen.read_text() if seen.exists() else ""


LM_EVAL = (
    "-m lm_eval --model llada --tasks sudoku4 --include_path configs/lmeval --limit 2 "
    "--gen_kwargs steps=4 --device cpu"
)
CHAT = "-m llada_plugins.chat --prompt ..1.4...........= --chat false --gen_length 16 --steps 4"
SFT = "-m training.sft --preset sudoku4 --max_steps 1 --eval_strategy no --use_cpu --output_dir"
OPENCOMPASS = "-m opencompass.cli.main configs/eval_llada.py --debug -w"


@pytest.mark.parametrize(
    ("command", "writes"),
    [
        (CHAT, False),
        pytest.param(SFT, True, marks=pytest.mark.slow),
        pytest.param(LM_EVAL, False, marks=pytest.mark.slow),
        pytest.param(OPENCOMPASS, True, marks=pytest.mark.slow),
    ],
    ids=["chat", "sft", "lm_eval", "opencompass"],
)
def test_without_a_hub_id_nothing_looks_for_the_network(
    command: str, writes: bool, tmp_path: Path
) -> None:
    written = [str(tmp_path / "out")] if writes else []
    assert run_watched([*command.split(), *written], tmp_path) == (0, "")
    if command == OPENCOMPASS:  # whose status is 0 whatever happens
        assert list((tmp_path / "out").glob("*/summary/*.csv"))


def test_a_command_that_looks_for_the_network_would_be_seen(tmp_path: Path) -> None:
    code = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('::1', 9))"
    _, seen = run_watched(["-c", code.replace("::1", "127.0.0.1")], tmp_path)
    assert "127.0.0.1" in seen


class Harm:
    """Unpickling it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_is_never_opened(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    with pytest.raises((ValueError, OSError)) as raised:
        Engine("llada", pretrained=str(folder))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/../../b.safetensors"])
def test_an_index_never_leads_out_of_the_folder(name: str, folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "other.safetensors")
    (folder / "model.safetensors").rename(folder / "whole.safetensors")
    index = {"weight_map": {"model.transformer.wte.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"a \.safetensors file in the folder"):
        Engine("llada", pretrained=str(folder))


def test_a_header_that_claims_a_terabyte_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{")
    with pytest.raises(ValueError, match=r"not a readable safetensors file: .*header too large$"):
        Engine("llada", pretrained=str(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_json_that_nests_without_end_is_refused(name: str, folder: Path) -> None:
    (folder / name).write_text('{"a":' + "[" * 200_000 + "]" * 200_000 + "}")
    with pytest.raises(ValueError, match=rf"{name} is not valid JSON: it nests too deep$"):
        Engine("llada", pretrained=str(folder))


@pytest.mark.parametrize(
    "template",
    [
        "{{ ().__class__.__bases__[0].__subclasses__() }}",
        "{{ raise_exception.__globals__['os'].system('true') }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{% for i in range(10**9) %}{{ i }}{% endfor %}",
        "{% include '/etc/passwd' %}",
    ],
    ids=["classes", "globals", "format", "endless", "file"],
)
def test_code_in_a_chat_template_is_refused(template: str, folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**settings, "chat_template": template})
    )
    engine = Engine("llada", pretrained=str(folder))
    with pytest.raises(ValueError, match="cannot render the chat: ") as raised:
        engine.render_chat([{"role": "user", "content": "1"}])
    assert "\n" not in str(raised.value)


def test_the_text_of_a_special_token_in_a_question_is_that_token() -> None:
    """As in transformers, and so in the published evaluations. The mask token is refused."""
    engine = Engine("llada", gen_length=16, steps=1)
    tokens = engine.encode(f"1{engine.tokenizer.eos_token}2")
    assert tokens == [*engine.encode("1"), engine.special.eos, *engine.encode("2")]
    masked = Request("1<|mdm_mask|>2", engine.sampler)
    with pytest.raises(ValueError, match="prompt 0 holds the mask token"):
        list(engine.generate([masked]))
