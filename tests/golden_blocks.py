"""How recordings of block-causal families are replayed: their answers and forwards in ours.

Each published sampler cuts an answer, and counts forwards, in its own way; its file's note
says how. Ours counts denoising steps alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from llada_plugins.diffusion.denoiser import model_denoiser
from llada_plugins.models.families import FAMILIES
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.special_tokens import SpecialTokens
from llada_plugins.options.fields import split
from llada_plugins.sampling import published
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.for_model import fitted
from llada_plugins.sampling.generate import generate
from llada_plugins.sampling.step import Step

Case = Mapping[str, Any]
SHIFTED = "right_shift_logits"  # dllm's option of a sampler; with us a model's logits are shifted


class Decoded(NamedTuple):
    """A case as the published code would report it."""

    answers: list[list[int]]
    forwards: list[int]  # of each row


def prompts_of(case: Case) -> list[list[int]]:
    """The case's prompts, of which it may have one alone."""
    if "prompt" not in case and "prompts" not in case:
        raise ValueError(f"no field 'prompts' in {str(case)[:80]}")
    return [case["prompt"]] if "prompt" in case else case["prompts"]


def sampler_of(case: Case, model: LLaDA, **more: Any) -> SamplerConfig:
    """The case's options under our names; more: what the options do not say."""
    given = {name: value for name, value in case["options"].items() if name != SHIFTED}
    options = published.native(given, FAMILIES[model.config.family].sampler)
    (config,) = split({**options, **more}, SamplerConfig)
    return fitted(config, model.config)


def bd3lm(model: LLaDA, case: Case, special: SpecialTokens | None) -> Decoded:
    """dllm's BD3LM: every row goes on until all have an EOS; a forward more for each block."""
    assert special is not None
    config = sampler_of(case, model)
    steps: Counter[int] = Counter()  # of each block

    def count(step: Step) -> None:
        steps[step.block] = step.step + 1

    samples = generate(
        model,
        prompts_of(case),
        config,
        special=SpecialTokens(special.mask),  # so that none ends by itself
        denoise=model_denoiser(model, shift=case["options"].get(SHIFTED)),
        on_step=count,
    )
    ends = [
        sample.answer.index(special.eos) if special.eos in sample.answer else len(sample.answer) - 1
        for sample in samples
    ]
    num_blocks = max(ends) // config.block_length + 1
    num_forwards = num_blocks + sum(steps[number] for number in range(num_blocks))
    answers = [sample.answer[: num_blocks * config.block_length] for sample in samples]
    return Decoded(answers, [num_forwards] * len(answers))


def counted(
    model: LLaDA, case: Case, special: SpecialTokens, config: SamplerConfig, **options: Any
) -> tuple[list[int], int, int]:
    """Answer of a case of one row, its forwards with us, and how many blocks it came to."""
    numbers = set()
    [prompt] = prompts_of(case)
    [sample] = generate(
        model,
        [prompt],
        config,
        special=special,
        on_step=lambda step: numbers.add(step.block),
        **options,
    )
    return sample.answer, sample.num_forwards, len(numbers)


def sdar(model: LLaDA, case: Case, special: SpecialTokens | None) -> Decoded:
    """SDAR: a forward more for the prompt's whole blocks, and one for each finished block."""
    assert special is not None
    options = dict(case["options"])
    ends = SpecialTokens(special.mask, None, None, tuple(options.pop("stop_ids")))
    config = sampler_of({**case, "options": options}, model)
    answer, forwards, num_blocks = counted(model, case, ends, config)
    prefill = len(prompts_of(case)[0]) >= config.block
    return Decoded([answer], [forwards + prefill + num_blocks])


def llada2(model: LLaDA, case: Case, special: SpecialTokens | None) -> Decoded:
    """LLaDA2: its answer is cut after the first EOS."""
    assert special is not None
    config = sampler_of(case, model)
    answer, forwards, _ = counted(model, case, special, config)
    return Decoded([cut_after(answer, special.eos)], [forwards])


def fast_dllm_v2(model: LLaDA, case: Case, special: SpecialTokens | None) -> Decoded:
    """Fast-dLLM v2: our first step of a block is its forward that stores the one before.

    A prompt's whole blocks cost it one as well, which is our first step where they are all
    of the prompt.
    """
    assert special is not None
    options = dict(case["options"])
    ends = SpecialTokens(special.mask, None, None, tuple(options.pop("stop_ids")))
    config = sampler_of({**case, "options": options}, model)
    answer, forwards, _ = counted(model, case, ends, config)
    num_tokens = len(prompts_of(case)[0])
    prefill = num_tokens > config.block and num_tokens % config.block != 0
    return Decoded([answer], [forwards + prefill])


def cut_after(answer: list[int], token: int | None) -> list[int]:
    """The answer up to the first of these tokens."""
    return answer[: answer.index(token) + 1] if token in answer else answer


# by family: of generate.json
REPLAYS = {"sdar": sdar, "llada2": llada2, "fast_dllm_v2": fast_dllm_v2}
