"""Which tokens a model's tokens see: full or block-causal, by family, checkpoint and option."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llada_plugins.engine.engine import Engine
from llada_plugins.files.json_files import read_json
from llada_plugins.models import loading
from llada_plugins.models.families import FAMILIES
from llada_plugins.models.folder import read_config
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.loading import load_model, save_model
from llada_plugins.models.past import Past
from tests.family_checkpoints import rewrite, write_checkpoint
from tests.tolerance import measured
from training import sft

pytestmark = pytest.mark.floats

BLOCK, LENGTH = 32, 70  # A2D's default; two whole blocks and a part


@pytest.fixture(scope="module")
def a2d(tmp_path_factory) -> Path:
    """A checkpoint that may have been trained with either attention; for reading only."""
    return write_checkpoint("a2d_qwen3", tmp_path_factory.mktemp("a2d") / "checkpoint")


def load(folder: Path, **options) -> LLaDA:
    return load_model(folder, device="cpu", dtype="float32", **options)


def tokens(rows: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randint(300, (rows, length), generator=torch.Generator().manual_seed(0))


def by_loops(length: int, block: int, start: int = 0) -> Tensor:
    """What each of `length` tokens sees; the first stands at position `start`."""
    places = range(start, start + length)
    return torch.tensor([[j // block <= i // block for j in places] for i in places])


def test_a_block_causal_model_sees_its_block_and_those_before_it(a2d):
    model, plain, ids = load(a2d, attention="block_causal"), load(a2d), tokens()
    assert (model.config.attention, model.config.block_length) == ("block_causal", BLOCK)
    mask = by_loops(LENGTH, BLOCK).expand(2, -1, -1)
    assert torch.equal(model(ids), plain(ids, mask))
    assert not torch.equal(model(ids), plain(ids))


def test_a_mask_of_pairs_goes_before_the_models_own_attention(a2d):
    model, plain, ids = load(a2d, attention="block_causal"), load(a2d), tokens()
    everything = torch.ones(2, LENGTH, LENGTH)
    assert torch.equal(model(ids, everything), plain(ids, everything))


def test_blocks_of_a_padded_row_are_its_own(a2d):
    model, ids = load(a2d, attention="block_causal"), tokens(3)
    real = torch.arange(LENGTH) >= torch.tensor([[0], [5], [40]])

    def padded(of: LLaDA) -> Tensor:
        return of(ids, real)[real]

    alone = torch.cat([model(row[kept][None])[0] for row, kept in zip(ids, real)])
    torch.testing.assert_close(padded(model), alone, atol=measured(padded, model), rtol=0)


def test_blocks_are_counted_by_the_positions_that_are_given(a2d):
    model, plain, ids = load(a2d, attention="block_causal"), load(a2d), tokens()
    starts = (0, 5)
    positions = torch.arange(LENGTH) + torch.tensor(starts)[:, None]
    mask = torch.stack([by_loops(LENGTH, BLOCK, start) for start in starts])
    found = model.hidden_states(ids, position_ids=positions)
    assert torch.equal(found, plain.hidden_states(ids, mask, position_ids=positions))


def test_a_window_on_kept_keys_sees_the_same(a2d):
    model, ids = load(a2d, attention="block_causal"), tokens()
    past, columns = Past(), slice(BLOCK, 2 * BLOCK)
    whole = model.streams(ids, past=past).hidden

    def window(of: LLaDA) -> Tensor:
        return of.hidden_states(ids)[:, columns]

    again = model.streams(ids, columns=columns, past=past).hidden
    torch.testing.assert_close(again, whole[:, columns], atol=measured(window, model), rtol=0)


def test_what_was_loaded_with_an_attention_is_saved_with_it(a2d, tmp_path):
    save_model(load(a2d, attention="block_causal"), tmp_path / "one")
    assert load(tmp_path / "one").config.attention == "block_causal"
    save_model(load(tmp_path / "one", attention="full"), tmp_path / "other")
    assert read_json(tmp_path / "other" / "config.json") == read_json(a2d / "config.json")
    assert load(tmp_path / "other").config.attention == "full"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_refuses_the_attention_that_it_does_not_have_before_weights(
    name, tmp_path, monkeypatch
):
    folder = write_checkpoint(name, tmp_path / name)
    own = read_config(folder).attention
    assert FAMILIES[name].attentions[0] == own
    (other,) = {"full", "block_causal"} - {own}
    if other in FAMILIES[name].attentions:
        return
    monkeypatch.setattr(loading, "load_weights", lambda *_, **__: pytest.fail("weights are read"))
    with pytest.raises(ValueError, match=f"attention={other}: .* of the family {name}, ") as error:
        load(folder, attention=other)
    assert "\n" not in str(error.value)


def test_an_unknown_attention_is_refused(a2d):
    with pytest.raises(ValueError, match="attention must be one of full, block_causal, got 'ful'"):
        load(a2d, attention="ful")


def test_a_config_with_an_unknown_attention_is_refused(a2d, tmp_path):
    folder = shutil.copytree(a2d, tmp_path / "copy")
    rewrite(folder, attention="causal")
    with pytest.raises(ValueError, match='attention is "?\'?causal.*expected "full" or'):
        load(folder)


def test_an_engine_and_a_training_command_take_the_option(tiny_checkpoint, tmp_path, sudokus):
    problem = "attention=block_causal: .* was trained with full attention alone"
    with pytest.raises(ValueError, match=problem):
        Engine(pretrained=str(tiny_checkpoint), device="cpu", attention="block_causal")
    given = ["--model", str(tiny_checkpoint), "--data", str(sudokus)]
    with pytest.raises(SystemExit, match=problem):
        sft.main([*given, "--output_dir", str(tmp_path / "out"), "--attention", "block_causal"])


def test_the_door_of_transformers_takes_the_option(a2d):
    pytest.importorskip("transformers")
    from transformers import AutoModelForMaskedLM

    import llada_plugins.hf  # noqa: F401  (the import registers)

    ids = tokens()
    model = AutoModelForMaskedLM.from_pretrained(a2d, attention="block_causal", dtype="float32")
    with torch.no_grad():
        found = model(ids).logits
    assert torch.equal(found, load(a2d, attention="block_causal")(ids))


def test_the_help_names_both_attentions():
    assert re.search("full .* or block_causal", Path("docs/options.md").read_text())
