"""Messages of other packages at start-up that say nothing to our users, kept from the terminal.

Each is named here by its logger (or category) and its words, with the reason why it
does not concern a user of this package. All else that those packages say is heard.
Standard library only.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Noise(NamedTuple):
    """A message that is not passed on."""

    words: str  # a regular expression that the message begins with
    reason: str


TORCHAO = "int8 weights are plain tensor operations; its compiled kernels, for GPUs, are not used"
ENUMS = "addressed to torchao's authors, whose import calls a function of torch that ages"
NF4 = "nf4 weights are dequantised by bitsandbytes itself; this further kernel is not used"
REGEX = (
    "meant for Mistral's tokenizers, which transformers suspects in any config.json without a "
    "model_type; a checkpoint's own pattern is what its model was trained with"
)
RECOMPUTE = "--gradient_checkpointing is the name that transformers 4 and 5 both know"

LOGGED: dict[str, list[Noise]] = {  # logger -> what it says
    "torchao": [
        Noise(r"Failed to load \S+\.so: ", TORCHAO),
        Noise("Skipping import of cpp extensions", TORCHAO),
    ],
    "torch.utils._pytree": [Noise(".* is an Enum subclass and is now natively supported", ENUMS)],
    "bitsandbytes.backends.cpu.ops": [Noise("Failed to load CPU gemm_4bit_forward", NF4)],
    "transformers.tokenization_utils_tokenizers": [  # transformers 5
        Noise("The tokenizer you are loading from .* with an incorrect regex pattern", REGEX)
    ],
    "transformers.tokenization_utils_base": [  # transformers 4
        Noise("The tokenizer you are loading from .* with an incorrect regex pattern", REGEX)
    ],
}
WARNED: list[tuple[type[Warning], Noise]] = [
    (FutureWarning, Noise("`gradient_checkpointing` is deprecated", RECOMPUTE)),
]


class Silence(logging.Filter):
    """Passes everything on but the given messages."""

    def __init__(self, noises: list[Noise]) -> None:
        super().__init__()
        self.words = re.compile("|".join(f"(?:{noise.words})" for noise in noises), re.DOTALL)

    def filter(self, record: logging.LogRecord) -> bool:
        return not self.words.match(record.getMessage())


FILTERS = {name: Silence(noises) for name, noises in LOGGED.items()}


def silence() -> None:
    """For programs: no message of LOGGED is heard as long as this process runs."""
    for name, each in FILTERS.items():
        logging.getLogger(name).addFilter(each)  # which adds it once


@contextmanager
def silenced() -> Iterator[None]:
    """For the library: no message of LOGGED or WARNED is heard from within the block."""
    added = [name for name, each in FILTERS.items() if each not in logging.getLogger(name).filters]
    silence()
    try:
        with warnings.catch_warnings():
            for category, noise in WARNED:
                warnings.filterwarnings("ignore", noise.words, category)
            yield
    finally:
        for name in added:
            logging.getLogger(name).removeFilter(FILTERS[name])
