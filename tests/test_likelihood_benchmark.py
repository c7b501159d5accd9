"""The likelihood benchmark: the published loop and our `published` agree, and the
command reports both sides. No times are asserted.
"""

from __future__ import annotations

import json
import statistics

import pytest
import torch

from benchmarks import language, likelihood, reference
from benchmarks.random_models import model_config, random_model
from llada_plugins import log_likelihood
from llada_plugins.models.llada import LLaDA
from tests.tolerance import token_error

pytestmark = pytest.mark.floats

SMALL = [
    "--shape",
    "tiny",
    "--num_questions",
    "2",
    "--prompt_length",
    "8",
    "--answer_length",
    "12",
    "--mc_num",
    "16",
    "--batch_tokens",
    "64",
]


@pytest.fixture(scope="module")
def model() -> LLaDA:
    return random_model(model_config("tiny", 64), torch.device("cpu"), seed=0)


def published(
    model: LLaDA, prompt: list[int], answer: list[int], mc_num: int, batch: int
) -> list[float]:
    return reference.log_likelihood(
        model,
        torch.tensor(prompt),
        torch.tensor(answer),
        model.special_tokens.mask,
        mc_num,
        batch,
        torch.Generator().manual_seed(0),
    )


def test_published_loop_and_our_published_estimator_have_one_mean_and_one_spread(model):
    pair = ([1, 2, 3], [4, 5, 6, 7, 8])
    theirs = published(model, *pair, 2400, 8)
    (ours,) = log_likelihood(model, [pair], estimator="published", mc_num=2400)
    error = statistics.stdev(theirs) / 300**0.5
    assert abs(statistics.mean(theirs) - ours.value) < 4 * (error**2 + ours.stderr**2) ** 0.5
    assert ours.stderr == pytest.approx(error, rel=0.2)  # 300 batches each: either is known to 5 %


def test_published_loop_is_exact_on_one_token(model):
    expected = float(
        model(torch.tensor([[1, 2, model.special_tokens.mask]]))[0, -1].log_softmax(-1)[7]
    )
    assert published(model, [1, 2], [7], 4, 2) == pytest.approx(
        [expected] * 2, abs=token_error(model)
    )


def test_values_of_single_tokens_are_compared(model, monkeypatch):
    options = likelihood.Options(shape="tiny", prompt_length=8, answer_length=6, mc_num=16)
    pairs = likelihood.questions(model, options)
    assert len(pairs) == 16
    assert len({tuple(prompt) for prompt, _ in pairs}) == 4
    assert len({len(answer) for _, answer in pairs}) > 1
    assert likelihood.same_values(model, pairs, options)
    monkeypatch.setattr(reference, "log_likelihood", lambda *arguments: [0.0])
    assert not likelihood.same_values(model, pairs, options)


def test_command_writes_its_result_as_json(tmp_path, capsys):
    assert likelihood.main([*SMALL, "--json", str(tmp_path / "result.json")]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["same_values"] is True and set(result["ratios"]) == {"equal_error", "equal_rows"}
    runs = result["runs"]
    assert runs["equal_error"]["variance"] <= runs["published"]["variance"]
    assert runs["published"]["rows"] == 2 * 4 * 16
    assert runs["equal_rows"]["mc_num"] == runs["published"]["mc_num"] == 16
    assert runs["equal_rows"]["rows"] <= 2 * 4 * 16
    assert "same values of single tokens: yes" in capsys.readouterr().out


def test_fitted_weights_are_measured_on_text_and_random_ones_on_random_ids(capsys):
    assert likelihood.main([*SMALL, "--fit_steps", "5"]) == 0
    assert "tiny, 5 updates, " in capsys.readouterr().out
    assert likelihood.main(SMALL) == 0
    assert "tiny, random weights, float32" in capsys.readouterr().out


def test_texts_keep_to_one_topic_except_for_common_words_and_successors():
    spoken = language.language(5000, seed=0)
    texts = language.texts(spoken, 50, 40, torch.Generator().manual_seed(0))
    assert len(spoken.words.unique()) == language.NUM_WORDS
    assert torch.isin(texts, spoken.words).all()
    numbers = torch.arange(language.NUM_WORDS)
    word = torch.full((5000,), -1).scatter(0, spoken.words, numbers)[texts]  # (50, 40)
    follows = (spoken.successors[word[:, :-1]] == word[:, 1:, None]).any(-1)
    # and some by chance
    assert language.FOLLOWS - 0.05 < float(follows.double().mean()) < language.FOLLOWS + 0.1
    drawn = word[:, 1:].masked_fill(follows, 0)
    topics = [
        {
            int(spoken.topics[:, number].argmax())
            for number in text.tolist()
            if number >= language.NUM_COMMON
        }
        for text in drawn
    ]
    assert all(len(each) <= 1 for each in topics) and len(set().union(*topics)) > 10


def test_fitted_weights_predict_other_texts_better_and_are_ready_for_inference(model):
    spoken = language.language(100, seed=0)
    other = random_model(model.config, torch.device("cpu"), seed=1)
    before, after = language.fit(
        other, spoken, steps=30, length=24, generator=torch.Generator().manual_seed(0)
    )
    assert after < before - 0.5
    assert not other.training
    assert not any(each.requires_grad for each in other.parameters())


def test_answers_go_on_where_their_prompt_ends(model):
    options = likelihood.Options(shape="tiny", prompt_length=8, answer_length=12)
    spoken = language.language(100, seed=0)
    text = language.texts(spoken, 4, 20, torch.Generator().manual_seed(0))
    for prompt, answer in likelihood.questions(model, options, spoken)[:4]:
        assert prompt == text[0, 8 - len(prompt) : 8].tolist()
        assert any(answer == row[8 : 8 + len(answer)].tolist() for row in text)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--fit_steps", "-1"], "fit_steps must not be negative"),
        (
            ["--shape", "8b", "--fit_steps", "60"],
            "fit_steps must not be negative, and 0 for shape 8b, whose optimizer needs 128 GB; "
            "got 60",
        ),
        (
            ["--mc_num", "12"],
            "mc_num must be a multiple of mc_batch (8), twice it at least, got 12",
        ),
        (["--mc_num", "8"], "twice it at least, got 8"),
        (["--num_choices", "0"], "num_choices must be at least 1"),
        (["--device", "gpu"], "device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        (["--json", "no/such/folder/result.json"], "its folder does not exist"),
    ],
)
def test_bad_options_are_refused_before_any_work(flags, message):
    with pytest.raises(SystemExit) as refused:
        likelihood.main([*SMALL, *flags])
    assert message in str(refused.value)
