"""Load a checkpoint's tokenizer, which must do what its files say; never through remote code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from llada_plugins.files.json_files import first_line, is_there, short
from llada_plugins.options.startup_messages import silenced

from .slow_tokenizer import half_of_slow, is_slow, read_slow_tokenizer
from .tokenizer_files import TokenizerFiles, read_tokenizer_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@silenced()
def load_tokenizer(
    folder: Path, chat_template: str | None = None, enable_thinking: bool | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder, never through remote code.

    chat_template: see `choose_template`. enable_thinking: see `set_thinking`. Raises
    FileNotFoundError, or ValueError that names the file: `tokenizers` and transformers end
    in any kind of exception.
    """
    if not has_tokenizer(folder):
        raise FileNotFoundError(
            f"{folder} has no tokenizer.json{half_of_slow(folder)}: pass tokenizer=FOLDER of the "
            "model's tokenizer"
        )
    files = read_tokenizer_files(folder)
    if is_slow(folder):
        files = files._replace(tokenizer=read_slow_tokenizer(folder, files))
    from transformers import PreTrainedTokenizerFast

    try:
        # AutoTokenizer would look up the model_type, which transformers does not know, and warn
        with _fast(folder, files) as complete:
            tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(complete)
        tokenizer.name_or_path = str(folder)
        trial = tokenizer.encode("a")
        tokenizer.decode(trial)
    except BaseException as error:  # Rust's PanicException is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(
            f"{folder / 'tokenizer.json'}, with the tokenizer's other files there, cannot be "
            f"loaded: {first_line(error)}"
        ) from None
    _check_loaded(folder, files, tokenizer, trial)
    if chat_template is not None:
        choose_template(tokenizer, chat_template)
    if enable_thinking is not None:
        set_thinking(tokenizer, enable_thinking)
    return tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Has the folder the files of a tokenizer that loads here?"""
    return is_there(folder / "tokenizer.json") or is_slow(folder)


@contextmanager
def _fast(folder: Path, files: TokenizerFiles) -> Iterator[Path]:
    """A folder with tokenizer.json: this one, or a copy of its small files with one made.

    It is made of the folder's vocabulary and merges.
    """
    if not is_slow(folder):
        yield folder
        return
    with TemporaryDirectory() as name:
        copy = Path(name)
        for path in folder.glob("*chat_template*"):
            copied = shutil.copytree if path.is_dir() else shutil.copy
            copied(path, copy / path.name)
        remote = ("auto_map", "tokenizer_class")  # the class that it would ask for is no longer it
        settings = {name: value for name, value in files.settings.items() if name not in remote}
        (copy / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        text = json.dumps(files.tokenizer, ensure_ascii=False)
        (copy / "tokenizer.json").write_text(text, encoding="utf-8")
        yield copy


def _check_loaded(
    folder: Path, files: TokenizerFiles, tokenizer: PreTrainedTokenizerBase, trial: list[int]
) -> None:
    """Raise ValueError where the loaded tokenizer does not do what its files say.

    transformers adds, renumbers and ignores unasked. trial: ids of a text, with what is
    added to it.
    """
    _check_added_tokens(folder, files, tokenizer)
    _check_named_tokens(folder, files)
    _check_frame(folder, files, "bos", trial[:1] == [tokenizer.bos_token_id])
    _check_frame(folder, files, "eos", trial[-1:] == [tokenizer.eos_token_id])
    _check_prefix_space(folder, files)


def _check_added_tokens(
    folder: Path, files: TokenizerFiles, tokenizer: PreTrainedTokenizerBase
) -> None:
    found = tokenizer.get_vocab()
    for content, token in files.added.items():
        if found.get(content) != token:
            raise ValueError(
                f"{folder}: its tokenizer's files give {short(content)} the id {token}, but it "
                f"becomes {found.get(content)}"
            )


def _check_named_tokens(folder: Path, files: TokenizerFiles) -> None:
    if not isinstance(files.tokenizer["model"].get("vocab"), dict):
        return
    for name in ("bos_token", "eos_token"):
        named = files.settings.get(name)
        if named and files.id_of(name) is None:
            raise ValueError(
                f"{folder}: {name} is {short(named)}, which is no token of tokenizer.json"
            )


def _check_frame(folder: Path, files: TokenizerFiles, name: str, adds: bool) -> None:
    """name: bos or eos. adds: does the tokenizer put that token round a text?"""
    stated = files.settings.get(f"add_{name}_token")
    if stated is not None and stated != adds:
        does = "adds" if adds else "does not add"
        raise ValueError(
            f"{folder}: tokenizer_config.json says add_{name}_token={str(stated).lower()}, but "
            f"tokenizer.json {does} {name}_token, and it decides: make the two agree"
        )


def _check_prefix_space(folder: Path, files: TokenizerFiles) -> None:
    stated = files.settings.get("add_prefix_space")
    pre_tokenizer = files.tokenizer.get("pre_tokenizer") or {}
    if stated is None or pre_tokenizer.get("type") != "ByteLevel":
        return
    done = pre_tokenizer.get("add_prefix_space")
    if done != stated:
        raise ValueError(
            f"{folder}: add_prefix_space is {stated} in tokenizer_config.json and {done} in "
            "tokenizer.json, which decides: make the two agree"
        )


def choose_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Make the chat template of that name the only one; ValueError where there is none."""
    templates = tokenizer.chat_template
    if not isinstance(templates, dict):
        has = "no chat template"
        if templates:
            has = "one chat template, which has no name: leave it out"
        raise ValueError(f"chat_template={name!r}: this tokenizer has {has}")
    if name not in templates:
        raise ValueError(
            f"chat_template={name!r}: this tokenizer's chat templates are "
            f"{', '.join(sorted(templates))}"
        )
    tokenizer.chat_template = templates[name]


def set_thinking(tokenizer: PreTrainedTokenizerBase, wanted: bool) -> None:
    """Have chat templates open an answer with or without thoughts, by the name that Qwen3's has.

    ValueError where none reads it: SDAR's and TraDo's do.
    """
    name, found = "enable_thinking", tokenizer.chat_template
    templates = dict(found) if isinstance(found, dict) else {"default": found or ""}
    if not any(name in template for template in templates.values()):
        raise ValueError(
            f"{name}={wanted} has no effect: the chat template of {tokenizer.name_or_path} does "
            "not read it, leave it out"
        )
    stated = f"{{%- set {name} = {str(wanted).lower()} -%}}"
    told = {
        each: stated + template if name in template else template
        for each, template in templates.items()
    }
    tokenizer.chat_template = told if isinstance(found, dict) else told["default"]
