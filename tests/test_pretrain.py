"""Pre-training: the objective in closed form, packed rows, throughput, the command from
text to a checkpoint that answers.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from llada_plugins.diffusion.forward_process import EPS, mask_tokens
from llada_plugins.engine.engine import Engine, Request
from llada_plugins.models.loading import load_model
from tests.small_training import EOS_ID, MASK_ID, VOCAB, flags, short_run, small_model
from tests.tolerance import forward_error, rounding, token_error
from training import pretrain
from training.data.corpus import collate_rows
from training.loop import objectives
from training.loop.objectives import Loss
from training.loop.random_streams import random_stream
from training.loop.throughput import Throughput, remedies, training_flops
from training.runs.arguments import RunArguments

pytestmark = pytest.mark.floats


def rows(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 10, (length,), generator=generator).tolist() for length in lengths]


def batch_of(*lengths: int, boundaries: bool = False) -> dict[str, torch.Tensor]:
    return collate_rows(EOS_ID, boundaries)(rows(*lengths))


# --- the objective --------------------------------------------------------------------


def test_the_loss_is_a_mean_over_real_tokens_as_a_naive_loop_has_it():
    model, batch = small_model(), batch_of(6, 4)
    loss = objectives.pretrain(MASK_ID, random_lengths=0.0)(model, batch, random_stream("a"))
    noisy = mask_tokens(batch["input_ids"], batch["weight"] > 0, MASK_ID, random_stream("a"))
    total = weights = 0.0
    for row, clean in enumerate(rows(6, 4)):
        # alone, without padding
        log_probs = model(noisy.tokens[row : row + 1, : len(clean)])[0].log_softmax(-1)
        for position, token in enumerate(clean):
            if noisy.tokens[row, position] == MASK_ID:
                total -= float(log_probs[position, token].detach()) / float(noisy.p_mask[row])
                weights += 1 / float(noisy.p_mask[row])
    assert noisy.masked.any(-1).all() and loss.count == 10
    assert float(loss.sum.detach()) == pytest.approx(
        total, abs=weights * token_error(model) + rounding(10, total)
    )


def test_an_ignorant_model_costs_ln_v_in_expectation():
    model = small_model()
    nn.init.zeros_(model.model["transformer"]["ff_out"].weight)
    batch = collate_rows(EOS_ID, False)([[1] * 8] * 4000)
    with torch.no_grad():
        loss = objectives.pretrain(MASK_ID, random_lengths=0.0)(model, batch, random_stream(0))
    # as for SFT: each row gives ln V * m / (8 p)
    standard_error = math.sqrt(math.log(1 / EPS) / 8 / 4000)
    assert abs(float(loss.sum / loss.count) / math.log(VOCAB) - 1) < 4 * standard_error


def test_the_loss_is_an_unbiased_estimate_of_the_enumerated_bound():
    model, clean, draws = small_model(), torch.tensor(rows(3)[0]), 20_000
    # p ~ U[0, 1] gives a mask set M of k among n the weight  ∫ p^k (1 - p)^(n - k) / p
    # dp = 1 / (k binom(n, k))
    exact = 0.0
    with torch.no_grad():
        for masked in itertools.product([False, True], repeat=3):
            if k := sum(masked):
                masked = torch.tensor(masked)
                log_probs = model(clean.masked_fill(masked, MASK_ID)[None])[0].log_softmax(-1)
                exact -= (
                    float(log_probs.gather(-1, clean[:, None])[masked].sum())
                    / (k * math.comb(3, k))
                    / 3
                )
        many = {"input_ids": clean.expand(100, 3), "weight": torch.ones(100, 3)}
        losses = [
            objectives.pretrain(MASK_ID, random_lengths=0.0)(model, many, random_stream(n))
            for n in range(draws // 100)
        ]
    means = torch.stack([loss.sum / loss.count for loss in losses]).double()
    assert abs(float(means.mean()) - exact) < 4 * float(means.std()) / math.sqrt(
        len(means)
    ) + EPS * math.log(VOCAB)


def test_padding_and_visible_tokens_have_no_gradient():
    embeddings = small_model().embedding(batch_of(6, 3)["input_ids"]).detach().requires_grad_(True)
    batch, model, seen = batch_of(6, 3), small_model(), []

    def watched(tokens, attention_mask, at):
        logits = model(None, attention_mask, inputs_embeds=embeddings)
        logits.retain_grad()
        seen.append((logits, at))
        return logits[at]

    watched.training = True
    objectives.pretrain(MASK_ID, random_lengths=0.0)(
        watched, batch, random_stream(3)
    ).sum.backward()
    ((logits, at),) = seen
    assert at.any() and not (at & (batch["weight"] == 0)).any()
    assert not logits.grad[~at].any() and logits.grad[at].any(-1).all()
    # nobody attends to padding
    assert not embeddings.grad[1, 3:].any() and embeddings.grad[1, :3].any()


def test_a_batch_without_any_mask_costs_nothing_and_every_gradient_exists():
    model, batch = small_model(), batch_of(1)
    without = next(
        n
        for n in range(1000)
        if not mask_tokens(
            batch["input_ids"], batch["weight"] > 0, MASK_ID, random_stream(n)
        ).masked.any()
    )
    loss = objectives.pretrain(MASK_ID, random_lengths=0.0)(model, batch, random_stream(without))
    loss.sum.backward()
    assert loss.sum == 0
    assert all(
        parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters()
    )


def test_random_lengths_are_uniform_in_training_alone_and_weigh_as_whole_batches():
    lengths = []

    def toy(tokens, attention_mask, at):  # costs ln V a masked token
        lengths.append(tokens.shape[1])
        assert attention_mask is None or attention_mask.shape == (
            2,
            *tokens.shape[1:] * (attention_mask.dim() - 1),
        )
        return torch.zeros(int(at.sum()), VOCAB)

    for boundaries in (False, True):
        batch = batch_of(5, 3, boundaries=boundaries)
        toy.training = False
        objectives.pretrain(MASK_ID, random_lengths=1.0)(toy, batch, random_stream(0))
        assert lengths.pop() == 5
        toy.training = True
        losses = [
            objectives.pretrain(MASK_ID, random_lengths=1.0)(toy, batch, random_stream(n))
            for n in range(1500)
        ]
        counts = torch.bincount(torch.tensor(lengths), minlength=6)
        assert counts[0] == 0 and (counts[1:] - 300).abs().max() < 4 * math.sqrt(300)
        # whatever is left, a token costs ln V: the mean over a length is not the mean
        # over the whole batch
        mean = torch.stack([loss.sum / loss.count for loss in losses]).mean() / math.log(VOCAB)
        assert all(loss.count == 8 for loss in losses)
        assert abs(float(mean) - 1) < 4 * math.sqrt(math.log(1 / EPS) / 1500)
        lengths.clear()
    objectives.pretrain(MASK_ID, random_lengths=0.0)(toy, batch, random_stream(0))
    assert lengths == [5]


def test_an_evaluation_has_the_same_noise_in_any_batch_and_estimates_the_same_bound():
    batch = batch_of(6, 4, 6)
    whole = objectives.counted_noise(batch["input_ids"], batch["weight"] > 0, MASK_ID)
    for row, clean in enumerate(rows(6, 4, 6)):
        alone = objectives.counted_noise(
            torch.tensor([clean]), torch.ones(1, len(clean), dtype=torch.bool), MASK_ID
        )
        assert torch.equal(alone.tokens[0], whole.tokens[row, : len(clean)])
        assert torch.equal(alone.p_mask[0], whole.p_mask[row])
    assert not whole.masked[1, 4:].any()
    assert torch.equal(whole.tokens[~whole.masked], batch["input_ids"][~whole.masked])
    different = torch.arange(8 * 8000).view(8000, 8)
    noisy = objectives.counted_noise(different, torch.ones_like(different, dtype=torch.bool), -1)
    count = noisy.masked.sum(1)
    assert torch.equal(noisy.p_mask[:, 0], count / 8)
    # a set of k among n has weight 1 / (k binom(n, k)) if k is uniform, and any k
    # tokens are as likely as others
    assert (torch.bincount(count, minlength=9)[1:] - 1000).abs().max() < 4 * math.sqrt(1000)
    assert all(
        (noisy.masked[count == k].float().mean(0) - k / 8).abs().max() < 4 * 0.5 / math.sqrt(900)
        for k in range(1, 9)
    )


# --- batches --------------------------------------------------------------------------


def test_documents_packed_with_boundaries_see_what_they_see_alone():
    model = small_model().eval()
    parts = [part + [EOS_ID] for part in rows(4, 2, 3)]
    packed = sum(parts, [])
    batch = collate_rows(EOS_ID, True)([packed, packed[:5]])  # the second row is padded
    with torch.no_grad():
        together = model(batch["input_ids"], batch["attention_mask"])
        alone = torch.cat([model(torch.tensor([part]))[0] for part in parts])
        bound = forward_error(model)  # rotary positions are relative: only rounding differs
        torch.testing.assert_close(together[0], alone, atol=bound, rtol=0)
        torch.testing.assert_close(together[1, :5], alone[:5], atol=bound, rtol=0)
        assert (model(torch.tensor([packed]))[0] - alone).abs().max() > 100 * bound


def test_logits_at_some_positions_are_those_of_all():
    model, batch = small_model().eval(), batch_of(6, 4)
    at = batch["input_ids"] > 4
    with torch.no_grad():
        everywhere = model(batch["input_ids"], batch["attention_mask"])
        torch.testing.assert_close(
            model(batch["input_ids"], batch["attention_mask"], at=at),
            everywhere[at],
            atol=forward_error(model),
            rtol=0,
        )


def test_only_padded_batches_carry_an_attention_mask():
    assert batch_of(4, 4).keys() == {"input_ids", "weight"}
    batch = batch_of(4, 2)
    assert (
        batch["attention_mask"].tolist()
        == batch["weight"].bool().tolist()
        == [[True] * 4, [True, True, False, False]]
    )
    assert batch["input_ids"][1, 2:].tolist() == [EOS_ID] * 2


# --- throughput -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields", [{}, {"head_width": 24}, {"num_experts": 4, "experts_per_token": 2}], ids=str
)
def test_training_flops_are_those_that_torch_counts(fields):
    model, tokens = small_model(**fields), torch.randint(0, 10, (4, 16))
    at = torch.arange(16).expand(4, 16) % 2 == 0
    with FlopCounterMode(display=False) as counter:
        model(tokens, at=at).sum().backward()
    assert counter.get_total_flops() == training_flops(model, 16) * tokens.numel()


def test_tokens_a_second_leave_evaluations_out(monkeypatch):
    clock = iter([0.0, 2.0, 100.0, 102.0, 200.0, 201.0])
    monkeypatch.setattr("training.loop.throughput.time.perf_counter", lambda: next(clock))
    throughput = Throughput(flops=3.0, peak=600.0)
    logs = [{"loss": 1.0}, {"eval_loss": 1.0}, {"loss": 1.0}]
    args = type("Arguments", (), {"world_size": 2})()

    def update(size: int) -> None:
        throughput.begin()
        throughput.count([{"input_ids": torch.zeros(1, size)}] * 2)
        throughput.on_step_end(args, None, None)

    update(100), update(100)
    throughput.on_log(args, None, None, logs[0])
    throughput.on_log(args, None, None, logs[1])
    update(50)
    throughput.on_log(args, None, None, logs[2])
    assert logs == [
        {"loss": 1.0, "tokens_per_second": 200.0, "flop_utilisation": 0.5},
        {"eval_loss": 1.0},
        {"loss": 1.0, "tokens_per_second": 200.0, "flop_utilisation": 0.5},
    ]


def hardly_used(**arguments: object) -> RunArguments:
    return RunArguments(output_dir="out", use_cpu=True, **arguments)


def log_lines(throughput: Throughput, args: RunArguments, num: int) -> None:
    """Lines of metrics.jsonl after an update of 32 tokens each, in a second of its own."""
    for _ in range(num):
        throughput.begin()
        throughput.count([{"input_ids": torch.zeros(2, 16)}])
        throughput.on_step_end(args, None, None)
        throughput.on_log(args, None, None, {"loss": 1.0})


@pytest.fixture
def one_second_an_update(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr("training.loop.throughput.time.perf_counter", lambda: float(next(clock)))


@pytest.mark.parametrize(
    "peak, num, told", [(1000.0, 1, 0), (1000.0, 4, 1), (100.0, 4, 0)], ids=["first", "low", "high"]
)
def test_a_device_that_is_hardly_used_is_told_once_and_not_of_the_first_line(
    one_second_an_update, caplog, peak, num, told
):
    log_lines(Throughput(flops=1.0, peak=peak, told_below=0.3), hardly_used(), num)
    said = [record.getMessage() for record in caplog.records if "FLOP/s" in record.getMessage()]
    assert len(said) == told
    if told:
        assert said[0].startswith("the device does 3 % of the FLOP/s")
        assert "--per_device_train_batch_size (a forward has 32 tokens)" in said[0]


def test_remedies_name_what_is_not_used_yet():
    plain, better = hardly_used(), hardly_used(bf16=True)
    better.torch_compile = True  # as an argument it would set the environment
    assert [each.split()[0] for each in remedies(plain, 100_000)][:2] == [
        "--bf16,",
        "--torch_compile",
    ]
    assert [each.split()[0] for each in remedies(better, 100_000)] == ["--dataloader_num_workers"]


# --- the command ----------------------------------------------------------------------

RUN = short_run(seq_len=16, gen_length=8, steps=4, eval_strategy="steps", eval_steps=2, max_steps=4)
FLAGS = [*flags(d_model=16, n_layers=1, n_heads=2), *RUN]


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.txt").write_text("the cat sat on the mat. " * 20)
    (folder / "test.txt").write_text("the dog sat on the log. " * 5)
    return folder


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def train(out: Path, *flags: str) -> None:
    pretrain.main([*flags, "--output_dir", str(out)])


def test_text_becomes_a_checkpoint_that_answers_and_can_be_trained_on(tmp_path, data, capsys):
    train(tmp_path / "a", "--dataset", str(data), *FLAGS, "--prompt", "the cat")
    bounds = [line for line in lines(tmp_path / "a") if "eval_loss" in line]
    assert [line["step"] for line in bounds] == [0, 2, 4, 4]
    assert bounds[2]["eval_loss"] == bounds[3]["eval_loss"]
    num_bytes = len((data / "test.txt").read_bytes())
    for line in bounds:
        assert line["eval_byte_perplexity"] == pytest.approx(
            math.exp(line["eval_loss"] * (num_bytes + 1) / num_bytes)
        )
    updates = [line for line in lines(tmp_path / "a") if "loss" in line]
    assert len(updates) == 4
    assert all(line["tokens_per_second"] > 0 and line["flop_utilisation"] > 0 for line in updates)
    samples = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("sample at step ")
    ]
    assert [sample.split(": ")[0] for sample in samples] == [
        f"sample at step {step}" for step in (0, 2, 4, 4)
    ]
    assert all(": 'the cat" in sample for sample in samples)
    assert samples[2] == samples[3] != samples[0]
    engine = Engine(pretrained=str(tmp_path / "a"), gen_length=8)
    assert len(list(engine.generate([Request("the ", engine.sampler)]))) == 1
    assert engine.special.mask == engine.model.config.mask_token_id and engine.max_length == 16
    run = ["--model", str(tmp_path / "a"), "--dataset", str(data / "train.txt"), *RUN]
    train(tmp_path / "b", *run, "--eval_data", str(data / "test.txt"), "--pack_boundaries")
    assert load_model(tmp_path / "b", device="cpu").config == engine.model.config
    # where the other ended
    assert lines(tmp_path / "b")[0]["eval_loss"] == pytest.approx(
        bounds[-1]["eval_loss"], abs=token_error(engine.model)
    )


def test_a_model_from_scratch_may_have_another_tokenizer(tmp_path, data, tiny_checkpoint):
    train(tmp_path / "a", "--dataset", str(data), "--tokenizer", str(tiny_checkpoint), *FLAGS)
    assert (
        load_model(tmp_path / "a", device="cpu").special_tokens
        == load_model(tiny_checkpoint, device="cpu").special_tokens
    )
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (
        tiny_checkpoint / "tokenizer.json"
    ).read_bytes()


def test_training_learns_text_and_its_bound_falls(tmp_path, data):
    train(
        tmp_path / "a",
        "--dataset",
        str(data / "train.txt"),
        "--eval_data",
        str(data / "train.txt"),
        *FLAGS,
        "--max_steps",
        "60",
        "--eval_steps",
        "20",
        "--learning_rate",
        "1e-2",
        "--gen_length",
        "0",
    )
    bounds = [line["eval_loss"] for line in lines(tmp_path / "a") if "eval_loss" in line][:4]
    # measured 2.13
    assert bounds[0] > math.log(262) - 1
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] < 2.9


def test_a_resumed_run_equals_an_uninterrupted_one_and_no_other_is_resumed(
    tmp_path, data, monkeypatch
):
    flags = [
        "--dataset",
        str(data / "train.txt"),
        *FLAGS,
        "--eval_strategy",
        "no",
        "--save_strategy",
        "steps",
        "--save_steps",
        "2",
        "--random_lengths",
        "0.5",
        "--logging_steps",
        "1",
    ]
    train(tmp_path / "whole", *flags)
    train(tmp_path / "cut", *flags)
    for path in (tmp_path / "cut" / "checkpoint-4").iterdir():
        path.unlink()
    (tmp_path / "cut" / "checkpoint-4").rmdir()
    train(tmp_path / "cut", *flags, "--resume")
    whole, resumed = (
        load_model(tmp_path / name, device="cpu").state_dict() for name in ("whole", "cut")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    for changed, message in (
        (["--dataset", str(data / "test.txt")], "on other data"),
        (["--seed", "1"], "with --seed 42, given is 1: "),
        (
            ["--random_lengths", "0"],
            "with --random_lengths 0.5, given is 0.0: give --random_lengths 0.5, or another",
        ),
    ):
        with pytest.raises(SystemExit, match=f"error: --resume: .* was trained {message}"):
            train(tmp_path / "cut", *flags, *changed, "--resume")


@pytest.mark.parametrize("bad, saved", [(4, "checkpoint-2"), (3, "checkpoint-1"), (2, None)])
def test_a_loss_that_is_not_finite_names_the_step_and_the_last_good_checkpoint(
    tmp_path, data, monkeypatch, bad, saved
):
    whole = objectives.pretrain

    def breaking(*given):
        calls = itertools.count(1)

        def objective(*args):
            loss = whole(*given)(*args)
            return Loss(loss.sum * (math.nan if next(calls) == bad else 1), loss.count)

        return objective

    monkeypatch.setattr(objectives, "pretrain", breaking)
    with pytest.raises(SystemExit) as exit_info:
        train(
            tmp_path / "a",
            "--dataset",
            str(data / "train.txt"),
            *FLAGS,
            "--eval_strategy",
            "no",
            "--save_strategy",
            "steps",
            "--save_steps",
            "1",
        )
    told = (
        f"the last good checkpoint is {tmp_path / 'a' / saved}"
        if saved
        else "there is no checkpoint from before it"
    )
    assert exit_info.value.code == f"error: the loss is nan in update {bad}; {told}"


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "give --dataset FILE, FOLDER or NAME"),
        (["--preset", "wikitext3"], "--preset must be one of wikitext2, got 'wikitext3'"),
        (
            ["--dataset", "{data}", "--model", "tiny", "--d_model", "8"],
            "--model brings its shape and tokenizer: leave --d_model out",
        ),
        (
            ["--dataset", "{data}", "--model", "tiny", "--seq_len", "5000"],
            "--seq_len must be between 1 and the model's 4096 tokens, got 5000",
        ),
        (["--dataset", "./absent.txt"], "./absent.txt: no such data"),
        (["--dataset", "absent.jsonl"], "absent.jsonl: no such data"),
        (
            ["--dataset", "no-such-name-anywhere"],
            "--dataset no-such-name-anywhere: no such file or folder, and the hub did not deliver "
            "it",
        ),
        (
            ["--dataset", "wikitext2", "--dataset_config", "x"],
            "--dataset_config has no effect on --dataset wikitext2",
        ),
        (
            ["--dataset", "{data}/train.txt", "--dataset_config", "x"],
            "--dataset_config has no effect on files",
        ),
        (
            ["--dataset", "{data}/train.txt", "--eval_split", "test"],
            "--eval_split has no effect on a file",
        ),
        (
            ["--dataset", "{data}", "--train_split", "valid"],
            "no file for the split valid, but alone.jsonl, bad.jsonl, deep.jsonl, empty.txt, "
            "latin.txt, test.txt, train.txt",
        ),
        (["--dataset", "{data}/empty.txt"], "empty.txt: no text"),
        (["--dataset", "{data}/latin.txt"], "latin.txt:2: not UTF-8 text: byte 0xe9"),
        (
            ["--dataset", "{data}/alone.jsonl"],
            "alone.jsonl:2: not UTF-8 text: lone surrogate \\ud800 at character 3",
        ),
        (["--dataset", "{data}/deep.jsonl"], "deep.jsonl:1: nested too deeply"),
        (["--dataset", "{data}/bad.jsonl"], 'bad.jsonl:2: expected {"text": text}'),
        (
            ["--dataset", "{data}/train.txt", "--d_model", "20", "--n_heads", "3"],
            "--d_model must be a multiple of twice --n_heads (3), got 20",
        ),
        (
            ["--dataset", "{data}/train.txt", "--top_p", "2"],
            "top_p must be above 0 and at most 1, got 2.0",
        ),
        (
            ["--dataset", "{data}/train.txt", "--seq_len", "32"],
            "exceed the model's context of 32 tokens",
        ),
        (["--dataset", "{data}/train.txt", "--eval_strategy", "steps"], "eval_strategy"),
        (
            ["--dataset", "{data}/train.txt", "--random_lengths", "2"],
            "--random_lengths must be between 0 and 1, got 2.0",
        ),
    ],
)
def test_bad_input_ends_with_one_clear_line(tmp_path, data, flags, message):
    (data / "empty.txt").write_text("")
    (data / "latin.txt").write_bytes(b"good\ncaf\xe9\n")
    (data / "alone.jsonl").write_text('{"text": "good"}\n{"text": "ab\\ud800"}\n')
    (data / "deep.jsonl").write_text('{"text":' + "[" * 100000)
    (data / "bad.jsonl").write_text('{"text": "good"}\n{"txt": "bad"}\n')
    with pytest.raises(SystemExit) as exit_info:
        train(tmp_path / "out", *(flag.format(data=data) for flag in flags), "--use_cpu")
    assert str(exit_info.value.code).startswith("error: ") and message in str(exit_info.value.code)
    assert "\n" not in str(exit_info.value.code)
    # that one is found by transformers, when all is made
    assert message == "eval_strategy" or not (tmp_path / "out").exists()


def test_what_a_refused_run_wrote_is_gone_and_what_was_there_stays(tmp_path, data):
    (tmp_path / "out").mkdir()
    (data / "empty.txt").write_text("")
    with pytest.raises(SystemExit, match="empty.txt: no text"):
        train(
            tmp_path / "out",
            "--dataset",
            str(data / "train.txt"),
            "--eval_data",
            str(data / "empty.txt"),
            "--use_cpu",
        )
    assert not list((tmp_path / "out").iterdir())
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(SystemExit, match="empty.txt: no text"):
        train(tmp_path / "out", "--dataset", str(data / "empty.txt"), "--overwrite", "--use_cpu")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


# --- where else metrics go ------------------------------------------------------------


def events(folder: Path) -> dict[tuple[int, str], float]:
    """The scalars of the folder's event files by step and name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (read,) = (EventAccumulator(str(path)).Reload() for path in folder.glob("runs/*"))  # one run
    return {
        (scalar.step, name): scalar.value
        for name in read.Tags()["scalars"]
        for scalar in read.Scalars(name)
    }


def test_tensorboard_shows_what_metrics_jsonl_says_and_an_overwritten_run_no_more(tmp_path, data):
    for rate in ("1e-3", "1e-2"):
        train(
            tmp_path / "out",
            "--dataset",
            str(data),
            *FLAGS,
            "--report_to",
            "tensorboard",
            "--learning_rate",
            rate,
            "--overwrite",
        )
        expected = {
            (
                line["step"],
                f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}",
            ): value
            for line in lines(tmp_path / "out")
            for name, value in line.items()
            if name != "step"
        }
        # events are fp32
        assert events(tmp_path / "out") == pytest.approx(expected, rel=rounding(1, 1.0))
        assert {
            (1, "train/loss"),
            (1, "train/tokens_per_second"),
            (0, "eval/byte_perplexity"),
        } < expected.keys()


def test_metrics_go_nowhere_else_unasked(tmp_path, data):
    train(tmp_path / "out", "--dataset", str(data), *FLAGS)
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.parametrize("more, drawn", [((), False), (("--disable_tqdm", "false"), True)])
def test_a_progress_bar_is_drawn_where_it_is_asked_for(tmp_path, data, capsys, more, drawn):
    train(tmp_path / "out", "--dataset", str(data), *FLAGS, *more)
    assert ("| 4/4 [" in capsys.readouterr().err) == drawn


@pytest.mark.parametrize("more", [(), ("--disable_tqdm", "false")], ids=["no bar", "bar"])
def test_every_line_is_shown_once_and_by_itself(tmp_path, data, capsys, monkeypatch, more):
    # pytest's, beside which the command would have none of its own
    monkeypatch.setattr(logging.root, "handlers", [])
    train(tmp_path / "out", "--dataset", str(data), *FLAGS, *more)
    told = capsys.readouterr()
    # as a terminal shows it
    shown = [line.split("\r")[-1].removeprefix("\x1b[A") for line in told.err.splitlines()]
    assert [line for line in shown if "loss" in line] == [
        f"step {line['step']}: "
        + ", ".join(f"{name} {value:.4g}" for name, value in line.items() if name != "step")
        for line in lines(tmp_path / "out")
    ]
    assert [line.partition(":")[0] for line in told.out.splitlines()] == [
        f"sample at step {step}" for step in (0, 2, 4, 4)
    ]


@pytest.mark.parametrize(
    "names, message",
    [
        (
            ["tensorboard"],
            "--report_to tensorboard: it is not installed; pip install 'llada-plugins[train]', or "
            "leave it out",
        ),
        (
            ["mlflow", "wandb"],
            "--report_to wandb: it is not installed; pip install wandb, or leave it out",
        ),
        (["tensorbord"], "unknown --report_to 'tensorbord' (did you mean 'tensorboard'?)"),
    ],
)
def test_a_tracker_that_cannot_be_had_ends_the_run_before_it_begins(
    tmp_path, data, monkeypatch, names, message
):
    monkeypatch.setattr(
        "training.runs.arguments.get_available_reporting_integrations", lambda: ["mlflow"]
    )
    with pytest.raises(SystemExit) as exit_info:
        train(tmp_path / "out", "--dataset", str(data), *FLAGS, "--report_to", *names)
    assert str(exit_info.value.code).startswith(f"error: {message}")
    assert not (tmp_path / "out").exists()
