"""The FAMILIES table: what differs between the families of checkpoints that load here.

A new family is a file with what is its own (a config map, a network where it differs) and a
row. No code outside this table asks which family a checkpoint is of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llada_plugins.files.json_files import short

from .bitower import MARK, BiTowerLLaDA
from .llada import BLOCKS, LLaDA
from .llada_config import LLaDAConfig, unknown_fields


class Family(NamedTuple):
    """A row of FAMILIES. "Ours" are the names of the module's own tensors and fields."""

    module: type[LLaDA]
    architectures: frozenset[str]  # what config.json may call it
    mark: str  # beginning of the names of tensors that every checkpoint of it stores
    # are its tensors enough to know it by, whatever config.json calls it?
    known_by_tensors: bool = False
    # config.json and where it lies (for messages) -> ours; raises ValueError in one line
    read_config: Callable[[Mapping[str, Any], str], LLaDAConfig] = LLaDAConfig.from_dict
    # ours -> config.json, architectures included
    write_config: Callable[[LLaDAConfig], dict[str, Any]] = LLaDAConfig.to_dict
    # fields of config.json that nobody knows, which is worth a warning
    unknown_fields: Callable[[Mapping[str, Any]], list[str]] = unknown_fields
    # module names, stored -> ours, N for each number; one that is not listed is the same in both
    names: Mapping[str, str] = {}
    blocks: str = BLOCKS  # beginning of our names of the Linears that quantize= changes
    # do logits at a column predict the token of the next one?
    shift: bool = False
    # names of the mask token and of the end of a turn, where config.json names none
    mask_names: tuple[str, ...] = ("<|mdm_mask|>", "<[MASK]>", "[MASK]", "<mask>")
    eot_names: tuple[str, ...] = ("<|eot_id|>",)

    def our_name(self, stored: str) -> str:
        """Our name of a stored tensor."""
        return _renamed(stored, self.names)

    def stored_name(self, ours: str) -> str:
        """The name under which a tensor of ours is stored."""
        return _renamed(ours, {mine: stored for stored, mine in self.names.items()})


# The first that claims a checkpoint has it: a bi-tower holds all tensors of a LLaDA too.
FAMILIES: dict[str, Family] = {
    "remedi": Family(
        BiTowerLLaDA,
        frozenset({"RemeDiUPMModelLM"}),
        MARK,
        known_by_tensors=True,  # its uploads disagree on model_type and architectures
    ),
    # by architecture, not model_type: LLaDA-MoE says "llada" too
    "llada": Family(LLaDA, frozenset({"LLaDAModelLM"}), "model.transformer."),
}


def recognise(architectures: Sequence[str], tensors: Collection[str], path: Path) -> str:
    """The family, by its name in FAMILIES, of a checkpoint with that config.json and tensors.

    architectures: what the config at `path` says. tensors: stored names, none where the files
    are absent, which is told where they are needed. Raises ValueError where no family has
    such an architecture, or the tensors are another family's.
    """
    held = [name for name, family in FAMILIES.items() if _holds(family, tensors)]
    named = [name for name, family in FAMILIES.items() if family.architectures & set(architectures)]
    for name in held:
        if name in named or FAMILIES[name].known_by_tensors:
            return name
    # A lone tensor of a strict family is missed by name when tensors are accounted for.
    plain = [name for name in named if not FAMILIES[name].known_by_tensors]
    if not plain:
        expected = sorted(
            architecture
            for family in FAMILIES.values()
            if not family.known_by_tensors
            for architecture in family.architectures
        )
        raise ValueError(
            f"{path}: architectures is {short(list(architectures))}, expected one of {expected}: "
            "not a LLaDA checkpoint"
        )
    if held:
        raise ValueError(
            f"{path}: architectures is {short(list(architectures))}, but the tensors are named as "
            f"those of {held[0]} are ({FAMILIES[held[0]].mark}*): config.json and weights do not "
            "belong together"
        )
    return plain[0]


def _holds(family: Family, tensors: Collection[str]) -> bool:
    return any(name.startswith(family.mark) for name in tensors)


def _renamed(tensor: str, names: Mapping[str, str]) -> str:
    """The name of a tensor after its module is renamed; numbers keep their order."""
    module, _, leaf = tensor.rpartition(".")
    number = r"(?<![^.])\d+(?![^.])"  # a whole part of the name
    form = re.sub(number, "N", module)
    if form not in names:
        return tensor
    numbers = iter(re.findall(number, module))
    renamed = re.sub(r"(?<![^.])N(?![^.])", lambda _: next(numbers), names[form])
    return f"{renamed}.{leaf}"
