"""2,100 damaged checkpoints (make fuzz: 50,000): each loads and gives finite numbers,
or ends in one line that names a file.
"""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from llada_plugins.files.json_files import Kind
from llada_plugins.models.llada_config import OPTIONAL, REQUIRED
from llada_plugins.models.loading import load_model
from tests.mutations import JSON, KINDS, PLACES, Fault, make_model, outcome, trials
from tests.mutations import Kind as Checkpoint

PARTS = 3  # of each kind's cases, so that they run beside each other
CASES = 100
WRONG = (None, True, "1", [], {}, -1, 0.5, 10**30)


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_checkpoint_loads_or_ends_in_one_line_that_names_a_file(name, part):
    met = Counter(end for _, _, end in trials(name, CASES, part))
    # the damage is no mere spelling
    assert sum(met.values()) == CASES and met["refused"] > met["works"] / 4


@pytest.mark.slow
def test_every_file_meets_every_kind_of_damage_in_the_long_run():
    for name, kind in KINDS.items():
        assert {file for file, _, _ in trials(name, 40)} == set(kind.files)
    met = {damage for _, damage, _ in trials("shards", 300)}
    assert met >= {
        *PLACES,
        *(f"header: {damage}" for damage in JSON),
        *JSON,
        "flipped bit",
        "truncated",
        "key twice",
        "other tensor",
    }


@pytest.mark.parametrize("field", [*REQUIRED, *OPTIONAL])
def test_no_field_of_a_config_takes_a_value_of_another_type(tmp_path, field):
    make_model(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    declared: Kind = {**REQUIRED, **OPTIONAL}[field]
    for value in WRONG:
        if declared.holds(value):
            continue
        (tmp_path / "config.json").write_text(json.dumps({**raw, field: value}))
        with pytest.raises(ValueError, match=rf"config.json: (needs )?{field}\b"):
            load_model(tmp_path, device="cpu")


@pytest.mark.parametrize("end", ["another error", "two lines", "no file named", "not finite"])
def test_a_checkpoint_that_ends_otherwise_is_a_fault(tmp_path, end):
    def load(folder):
        if end == "not finite":
            return torch.tensor([1.0, torch.nan])
        raise {
            "another error": KeyError("config.json"),
            "two lines": ValueError("config.json\nis bad"),
            "no file named": ValueError("bad"),
        }[end]

    with pytest.raises(Fault):
        outcome(Checkpoint((), lambda folder: None, load), tmp_path, "config.json")
