"""Block-causal checkpoints behind the engine: published names, and what goes with what."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llada_plugins.engine.engine import Engine
from llada_plugins.sampling.published import native
from training.data.byte_tokenizer import byte_tokenizer

pytestmark = pytest.mark.floats

FAMILIES = Path(__file__).parent / "golden" / "families"
# of each family's mask, which the byte tokenizer does not know
MASK_IDS = {"sdar": 311, "llada2": 307, "fast_dllm_v2": 301}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Callable[[str], Path]:
    """A function from a family to its recorded checkpoint with the byte tokenizer."""

    def make(family: str) -> Path:
        folder = tmp_path_factory.getbasetemp() / family
        if not folder.exists():
            shutil.copytree(FAMILIES / family / "checkpoint", folder)
            byte_tokenizer(folder)
        return folder

    return make


@pytest.mark.parametrize(
    "family, options, message",
    [
        ("sdar", dict(small_block_size=2), "small_block_size is an option of Fast-dLLM v2's"),
        ("sdar", dict(cache="dual"), "cache=dual freezes what later blocks change"),
        ("sdar", dict(sampling_method="semi_ar_padding"), "sampler must be block_causal"),
        ("sdar", dict(attention="full"), "attention=full: .* block_causal attention alone"),
        ("sdar", dict(edit_threshold=0.5), "edit_threshold has no effect without threshold"),
        ("llada2", dict(editing_threshold=0.5, steps=4), "steps has no effect beside editing"),
        ("llada2", dict(threshold=0.5, max_post_steps=2), "max_post_steps has no effect without"),
        ("fast_dllm_v2", dict(block_size=6, small_block_size=4), "must divide block_length"),
        ("fast_dllm_v2", dict(threshold=0.9, sub_block_cache=True), "needs sub_block_length"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_in_one_line(checkpoint, family, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        Engine(pretrained=str(checkpoint(family)), mask_id=MASK_IDS[family], **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "sampler, given, expected",
    [
        (
            "sdar",
            dict(denoising_steps=4),
            dict(block_steps=4, threshold=1.0, strict=True, answer_end="block"),
        ),
        (
            "sdar",
            dict(remasking_strategy="sequential", denoising_steps=3, confidence_threshold=0.85),
            dict(
                block_steps=3,
                schedule="block_share",
                confidence_source="leftmost",
                answer_end="block",
            ),
        ),
        (
            "llada2",
            dict(steps=32, eos_early_stop="true"),
            dict(block_steps=32, minimal_topk=1, threshold=0.95, strict=True, stop_at="new_eos"),
        ),
        (
            "llada2",
            dict(num_to_transfer=2, max_post_steps=4),
            dict(
                at_least=2,
                max_post_steps=4,
                edit_threshold=0.9,
                threshold=0.95,
                strict=True,
                stop_at="never",
            ),
        ),
        (
            "fast_dllm_v2",
            dict(max_new_tokens=64, small_block_size=4, threshold=0.9),
            dict(
                gen_length=64,
                sub_block_length=4,
                threshold=0.9,
                strict=True,
                first_token_alone=True,
                stop_at="eos",
                answer_end="next_token",
            ),
        ),
        # options of ours alone are no published sampler
        ("llada2", dict(threshold=0.5), dict(threshold=0.5)),
        ("llada", dict(steps=32), dict(steps=32)),
    ],
    ids=str,
)
def test_published_names_mean_their_publishers_sampler(sampler, given, expected):
    assert native(given, sampler) == expected


@pytest.mark.parametrize(
    "sampler, given, message",
    [
        ("sdar", dict(remasking_strategy="entropy_bounded"), "must be one of sequential, "),
        ("sdar", dict(remasking_strategy="low_confidence_dynamic"), "needs confidence_threshold"),
        ("sdar", dict(confidence_threshold=0.9, threshold=0.9), "two names of one option"),
        ("sdar", dict(denoising_steps=2, block_steps=2), "two names of one option"),
        ("llada2", dict(editing_threshold=0.9, minimal_topk=2), "minimal_topk has no effect"),
        ("llada2", dict(eos_early_stop="perhaps"), "eos_early_stop"),
        ("llada", dict(denoising_steps=2), "denoising_steps is an option of SDAR's sampler"),
    ],
    ids=str,
)
def test_published_names_that_say_nothing_here_are_refused(sampler, given, message):
    with pytest.raises(ValueError, match=message):
        native(given, sampler)
