"""What several test files share: where the golden outputs are, a random model and a
checkpoint folder of it, a full disk.
"""

from __future__ import annotations

import functools
import gc
import json
import logging
import os
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub when it is imported
os.environ["TERM"] = "xterm"  # the same drawings, whatever the tests run in
THREADS = os.environ.get("LLADA_TEST_THREADS", "1")
# for the harness processes that tests start; see set_num_threads below
os.environ.setdefault("OMP_NUM_THREADS", THREADS)

VARIABLES = set(os.environ) - {"PYTEST_CURRENT_TEST"}  # libraries add some on first use

import pytest
import torch
from torch.utils import collect_env

from llada_plugins.models.bitower import BiTowerLLaDA
from llada_plugins.models.initial import initialise
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.llada_config import LLaDAConfig
from llada_plugins.models.loading import save_model
from tests.llada_shape import LLADA
from tests.siblings import is_sibling

TESTS = Path(__file__).parent
# whole files beside the repository, first rows in it
PUBLIC = (TESTS.parents[1] / "shared" / "data", TESTS / "data")

# lm-eval writes it beside all results: torch starts pip and others for it, for a second
collect_env.get_pretty_env_info = functools.cache(collect_env.get_pretty_env_info)


def pytest_collection() -> None:
    """What test files import is no garbage: see pytest_collection_finish."""
    gc.disable()


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what siblings.py lists as slow."""
    for item in items:
        if is_sibling(item.path.name, item.name):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """What was imported stays to the end, so garbage is looked for among later objects alone.

    Else each full collection walks through millions of objects of torch, transformers and
    both harnesses: an eighth of the fast tests' time.
    """
    gc.freeze()
    gc.enable()


def pytest_runtest_setup() -> None:
    """Before each test, since training sets it.

    One thread, unless the environment says otherwise: matrices here are tiny, and on
    busy cores a second thread made one test 45 times slower (3 s, 145 s).
    """
    torch.set_num_threads(int(THREADS))


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """Every test draws the same random numbers, whichever ran before it in its process."""
    random.seed(0)
    torch.manual_seed(0)


def process_state() -> dict[str, object]:
    """What every test finds in its process and may change only while it runs."""
    ours = [name for name in logging.root.manager.loggerDict if name.startswith("llada_plugins")]
    return {
        "folder": os.getcwd(),
        "variables": {name: os.environ.get(name) for name in VARIABLES},
        "disabled warnings": logging.root.manager.disable,
        "our loggers": [
            (name, log.level, log.disabled, log.propagate)
            for name in sorted(ours)
            if (log := logging.getLogger(name)).level or log.disabled or not log.propagate
        ],
        "float type": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


@pytest.fixture(autouse=True)
def process_as_it_was(same_draws: None) -> Iterator[None]:
    """A test that leaves its process changed fails, not one that runs after it."""
    before = process_state()
    yield
    assert process_state() == before


@pytest.fixture(scope="session")
def golden() -> Path:
    """Recorded outputs of the published code; for reading only."""
    return TESTS / "golden"


@pytest.fixture(scope="session")
def published() -> Path:
    """JSON files of the published LLaDA checkpoints; for reading only."""
    return TESTS / "data" / "llada_meta"


@pytest.fixture(scope="session")
def public() -> Callable[[str], Path]:
    """A function from the name of a public data file or folder to its path; for reading only.

    It is whole where public data lie beside the repository, and else holds the first rows.
    """

    def find(name: str) -> Path:
        for folder in PUBLIC:
            if (folder / name).exists():
                return folder / name
        pytest.skip(f"needs the public data {name}, see tests/data/README.md")

    return find


@pytest.fixture(scope="session")
def make_model():
    """A function from LLaDAConfig fields to a random two-layer model, ready for inference."""

    def make(seed: int = 0, **fields) -> LLaDA:
        values = dict(
            d_model=32,
            n_heads=4,
            n_layers=2,
            vocab_size=40,
            mlp_hidden_size=48,
            **LLADA,
            mask_token_id=39,
            eos_token_id=38,
        )
        model = LLaDA(LLaDAConfig(**{**values, **fields}))
        generator = torch.Generator().manual_seed(seed)
        initialise(model, generator)
        # norms and biases too, else a misplaced one would go unnoticed
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        return model.eval().requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory, make_model):
    """A function from LLaDAConfig fields to a folder of that model with the byte tokenizer."""
    from training.data.byte_tokenizer import EOS, MASK, byte_tokenizer

    def make(**fields) -> Path:
        folder = tmp_path_factory.mktemp("tiny")
        ids = byte_tokenizer(folder)
        size = max(ids.values()) + 1
        tokens = dict(vocab_size=size, mask_token_id=ids[MASK], eos_token_id=ids[EOS])
        save_model(make_model(**{**tokens, **fields}), folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(make_checkpoint) -> Path:
    """A checkpoint folder of a random model with the byte tokenizer; for reading only."""
    return make_checkpoint(max_sequence_length=128)


@pytest.fixture(scope="session")
def bi_tower(tiny_checkpoint, tmp_path_factory) -> Path:
    """A random bi-tower checkpoint with the byte tokenizer; for reading only."""
    folder = tmp_path_factory.mktemp("remedi")
    for path in tiny_checkpoint.iterdir():
        if path.name != "model.safetensors":
            shutil.copy(path, folder)
    changed = {"n_layers": 31, "d_model": 16, "mlp_hidden_size": 24}
    raw = {**json.loads((folder / "config.json").read_text()), **changed}
    model = BiTowerLLaDA(LLaDAConfig.from_dict(raw))
    initialise(model, torch.Generator().manual_seed(0))
    said = {"model_type": "RemeDi", "architectures": ["RemeDiUPMModelLM"]}
    save_model(model, folder, said)
    return folder


@pytest.fixture(scope="session")
def sudokus(tmp_path_factory) -> Path:
    """A JSONL file of twelve sudokus as prompt and completion; for reading only."""
    from tests.small_training import write_sudokus

    return write_sudokus(tmp_path_factory.mktemp("sudokus") / "data.jsonl", 12)


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """A context in which no file can grow beyond so many bytes."""

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit
