"""Load a checkpoint's tokenizer, which must do what its files say; never through remote code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llada_plugins.files.json_files import first_line, is_there, short
from llada_plugins.options.startup_messages import silenced

from .tokenizer_files import TokenizerFiles, read_tokenizer_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@silenced()
def load_tokenizer(folder: Path, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder, never through remote code; chat_template:
    see `choose_template`.

    Raises FileNotFoundError, or ValueError that names the file: `tokenizers` and
    transformers end in any kind of exception.
    """
    if not is_there(folder / "tokenizer.json"):
        raise FileNotFoundError(
            f"{folder} has no tokenizer.json: pass tokenizer=FOLDER of the model's tokenizer"
        )
    files = read_tokenizer_files(folder)
    from transformers import PreTrainedTokenizerFast

    try:
        # AutoTokenizer would look the model_type up, which transformers does not know,
        # and warn of it
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        trial = tokenizer.encode("a")
        tokenizer.decode(trial)
    except BaseException as error:
        # which Rust raises, beside Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(
            f"{folder / 'tokenizer.json'}, with the tokenizer's other files there, cannot be "
            "loaded: "
            f"{first_line(error)}"
        ) from None
    _check_loaded(folder, files, tokenizer, trial)
    if chat_template is not None:
        choose_template(tokenizer, chat_template)
    return tokenizer


def _check_loaded(
    folder: Path, files: TokenizerFiles, tokenizer: PreTrainedTokenizerBase, trial: list[int]
) -> None:
    """Raise ValueError where the loaded tokenizer does not do what its files say:
    transformers adds, renumbers and ignores unasked.
    """
    found = tokenizer.get_vocab()
    for content, token in files.added.items():
        if found.get(content) != token:
            raise ValueError(
                f"{folder}: its tokenizer's files give {short(content)} the id {token}, but it "
                f"becomes {found.get(content)}"
            )
    for name in ("bos_token", "eos_token"):
        if (
            files.settings.get(name)
            and files.id_of(name) is None
            and isinstance(files.tokenizer["model"].get("vocab"), dict)
        ):
            raise ValueError(
                f"{folder}: {name} is {short(files.settings[name])}, which is no token of "
                "tokenizer.json"
            )
    for name, stands in (
        ("bos", trial[:1] == [tokenizer.bos_token_id]),
        ("eos", trial[-1:] == [tokenizer.eos_token_id]),
    ):
        stated = files.settings.get(f"add_{name}_token")
        if stated is not None and stated != stands:
            raise ValueError(
                f"{folder}: tokenizer_config.json says add_{name}_token={str(stated).lower()}, "
                "but tokenizer.json "
                f"{'adds' if stands else 'does not add'} {name}_token, and it decides: make the "
                "two agree"
            )
    stated, spaces = (
        files.settings.get("add_prefix_space"),
        files.tokenizer.get("pre_tokenizer") or {},
    )
    if (
        stated is not None
        and spaces.get("type") == "ByteLevel"
        and spaces.get("add_prefix_space") != stated
    ):
        raise ValueError(
            f"{folder}: add_prefix_space is {stated} in tokenizer_config.json and "
            f"{spaces.get('add_prefix_space')} in "
            "tokenizer.json, which decides: make the two agree"
        )


def choose_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Make the chat template of that name the tokenizer's only one; ValueError where it
    has none of that name.
    """
    templates = tokenizer.chat_template
    if not isinstance(templates, dict):
        has = (
            "one chat template, which has no name: leave it out"
            if templates
            else "no chat template"
        )
        raise ValueError(f"chat_template={name!r}: this tokenizer has {has}")
    if name not in templates:
        raise ValueError(
            f"chat_template={name!r}: this tokenizer's chat templates are "
            f"{', '.join(sorted(templates))}"
        )
    tokenizer.chat_template = templates[name]
