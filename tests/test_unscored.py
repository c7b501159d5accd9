"""A request that a process reward model cannot score ends no other's answer."""

from __future__ import annotations

import math

import pytest
import torch

from llada_plugins.engine.engine import Engine
from llada_plugins.engine.request import Request
from llada_plugins.models.folder import TINY
from llada_plugins.rewards.step_scorer import ScoreError

OPTIONS = dict(gen_length=16, block_length=4, steps=4, batch_size=4, device="cpu")
PROMPTS = ["4...=", "1.2.=", "z", "..34=", "z1", "2="]


def damage(engine: Engine) -> Engine:
    """Its reward model gives no number for questions that have a z in them."""
    judge = engine.prepared.judge
    assert judge is not None
    embedding = judge.scorer.model.model.get_input_embeddings()
    with torch.no_grad():
        embedding.weight[engine.tokenizer.encode("z")] = math.nan
    return engine


def test_all_others_are_answered_before_the_failing_ones_are_told():
    engine = damage(Engine("llada_prm", prm=str(TINY / "prm"), **OPTIONS))
    good = [prompt for prompt in PROMPTS if "z" not in prompt]
    requests = {prompt: Request(prompt, engine.sampler) for prompt in PROMPTS}
    expected = {
        good[number]: found.text
        for number, found in engine.generate([requests[prompt] for prompt in good])
    }
    answers = {}
    with pytest.raises(ScoreError) as told:
        for number, found in engine.generate(list(requests.values())):
            answers[PROMPTS[number]] = found.text
    assert answers == expected and len(set(expected.values())) > 1
    message = str(told.value)
    assert "\n" not in message
    assert message.startswith(
        "2 of 6 requests have no answer, all others have; the first is number 3: "
    )
    assert (
        message.endswith("(bfloat16 and float32 hold more than float16)")
        and "no number came out" in message
    )


def test_lm_eval_keeps_the_other_answers_and_fails(tmp_path):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import CachingLM

    from llada_plugins.lmeval_models import LLaDAPRM

    def answers(prompts: list[str]) -> list[str]:
        model = LLaDAPRM(prm=str(TINY / "prm"), **OPTIONS)
        damage(model.engine)
        cached = CachingLM(model, str(tmp_path / "cache.db"))
        requests = [
            Instance("generate_until", {}, (prompt, {}), number)
            for number, prompt in enumerate(prompts)
        ]
        try:
            return cached.generate_until(requests)
        finally:
            cached.dbdict.close()

    with pytest.raises(ScoreError, match="2 of 6 requests have no answer"):
        answers(PROMPTS)
    # the others are on the disk: none of them is decoded again
    good = [prompt for prompt in PROMPTS if "z" not in prompt]
    decoded: list[int] = []
    plain = Engine.generate

    def counting(engine, requests, *arguments):
        decoded.append(len(requests))
        return plain(engine, requests, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "generate", counting)
        assert len(set(answers(good))) > 1
    assert sum(decoded) == 0
