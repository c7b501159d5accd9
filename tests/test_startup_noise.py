"""Messages of other packages that are not the user's do not reach him, and all others do."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainingArguments

from llada_plugins.models.quantization import METHODS
from llada_plugins.models.tokenizer import load_tokenizer
from llada_plugins.options import startup_messages as startup_noise
from training.runs.arguments import RunArguments

SAID = [  # as the tested versions say it
    ("torchao", "Failed to load /site-packages/torchao/_C_cutlass_90a.abi3.so: Could not load it"),
    ("torchao", "Skipping import of cpp extensions due to incompatible torch version. Please "),
    (
        "torch.utils._pytree",
        "<enum 'KernelPreference'> is an Enum subclass and is now natively "
        "supported by torch.compile as an opaque value type.",
    ),
    (
        "bitsandbytes.backends.cpu.ops",
        "Failed to load CPU gemm_4bit_forward from kernels-community: No module named 'kernels'.",
    ),
    (
        "transformers.tokenization_utils_tokenizers",
        "The tokenizer you are loading from 'DIR' with an incorrect regex pattern: https://…",
    ),
]
HEARD = [
    ("torchao", "Failed to load the config"),
    ("torchao", "int8 is deprecated"),
    ("torch.utils._pytree", "Graph is an Enum subclass and cannot be registered"),
    ("bitsandbytes.backends.cpu.ops", "Failed to load CPU kernel of another kind"),
    ("transformers.tokenization_utils_tokenizers", "Token indices sequence length is too long"),
    ("llada_plugins", "Failed to load /x.so: y"),
]


@contextmanager
def heard() -> Iterator[list[str]]:
    """The messages that the loggers of SAID and HEARD pass on within the block."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in sorted({name for name, _ in SAID + HEARD})]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield messages
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


@pytest.fixture(autouse=True)
def nothing_is_silenced(monkeypatch):
    """training, which silences for a whole process, was imported by other tests."""
    for name, each in startup_noise.FILTERS.items():
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "filters", [old for old in logger.filters if old is not each])


@pytest.mark.parametrize("name, message", SAID)
def test_a_named_message_is_not_heard_within_the_block_and_is_after_it(name, message):
    with heard() as messages:
        with startup_noise.silenced():
            logging.getLogger(name).warning("%s", message)
        assert messages == []
        logging.getLogger(name).warning("%s", message)
    assert messages == [message]


@pytest.mark.parametrize("name, message", HEARD)
def test_every_other_message_is_heard(name, message):
    with heard() as messages, startup_noise.silenced():
        logging.getLogger(name).warning("%s", message)
    assert messages == [message]


def test_a_block_within_a_silent_program_leaves_it_silent():
    startup_noise.silence()
    with startup_noise.silenced():
        pass
    with heard() as messages:
        for name, message in SAID:
            logging.getLogger(name).warning("%s", message)
    assert messages == []


def test_every_noise_has_a_reason_and_is_among_those_tried():
    noises = [(name, noise) for name, noises in startup_noise.LOGGED.items() for noise in noises]
    assert all(noise.reason for _, noise in noises)
    assert {name for name, _ in noises} - {name for name, _ in SAID} == {
        "transformers.tokenization_utils_base"
    }  # the same message in transformers 4


def test_a_tokenizer_beside_a_config_without_model_type_loads_without_a_word(tmp_path):
    vocabulary = {str(number): number for number in range(100_001)}  # what is suspected
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with heard() as messages:
        PreTrainedTokenizerFast.from_pretrained(tmp_path)
        if not messages:
            pytest.skip("this transformers does not suspect the tokenizer")
        messages.clear()
        load_tokenizer(tmp_path)
    assert messages == []


def test_recomputing_is_asked_for_without_a_future_warning(tmp_path):
    flags = dict(output_dir=str(tmp_path), use_cpu=True, gradient_checkpointing=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        TrainingArguments(**flags)
        if not any("`gradient_checkpointing` is deprecated" in str(one.message) for one in caught):
            pytest.skip("this transformers does not call the name deprecated")
        caught.clear()
        assert RunArguments(**flags).gradient_checkpointing
    assert not [one for one in caught if "gradient_checkpointing" in str(one.message)]


@pytest.mark.slow
def test_a_training_run_writes_its_own_lines_and_nothing_else(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1234", "completion": "4321"}\n')
    command = (
        "-m",
        "training.sft",
        "--model",
        "tiny",
        "--data",
        "rows.jsonl",
        "--output_dir",
        "o",
        "--max_steps",
        "1",
        "--use_cpu",
        "--num_threads",
        "1",
        "--gradient_checkpointing",
    )
    finished = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert [line for line in finished.stderr.splitlines() if not line.startswith("step ")] == []


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_quantised_model_loads_without_a_word(method, tmp_path):
    code = f"from llada_plugins import Engine; Engine('llada', quantize={method!r}, device='cpu')"
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert finished.stderr == ""
