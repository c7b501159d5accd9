"""PRM training: labels by the exact rule, loss where a step is read and nowhere else,
an output that scorer and transformers load.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import permutations, product
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from llada_plugins.files.jsonl import write_rows
from llada_plugins.models.folder import TINY
from llada_plugins.models.tokenizer import load_tokenizer
from llada_plugins.rewards.process_reward_model import PRMConfig, load_prm
from llada_plugins.tasks import sudoku
from llada_plugins.tasks.splits import split_of
from tests.small_training import short_run
from tests.tolerance import measured
from training import prm_sft, step_data
from training.data import sudoku_steps
from training.data.byte_tokenizer import byte_tokenizer
from training.data.steps import StepRow, collate_steps, read_steps, step_encoder
from training.data.sudoku_steps import solutions_in_steps
from training.loop.objectives import IGNORED
from training.runs import prm_run as reward
from training.runs.prm_run import PRMOptions

pytestmark = pytest.mark.floats

RUN = short_run(per_device_train_batch_size=8, max_steps=6, learning_rate=1e-2, warmup_steps=0)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A random causal LM of 64 tokens' context with the byte tokenizer: no head of classes yet."""
    folder = tmp_path_factory.mktemp("base")
    ids = byte_tokenizer(folder)
    torch.manual_seed(0)
    shape = dict(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
    )
    Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=256 + len(ids),
            max_position_embeddings=64,
            tie_word_embeddings=False,
            initializer_range=0.3,
            classifier_dropout=0.0,
            **shape,
        )
    ).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def log(caplog) -> None:
    """What a command shows on its first process."""
    caplog.set_level("INFO")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "steps.jsonl"
    write_rows(solutions_in_steps("train", 64), path)
    return path


def logged(folder: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def trained(base: Path, data: Path, folder: Path, *flags: str) -> Path:
    prm_sft.main(
        ["--model", str(base), "--data", str(data), "--output_dir", str(folder), *RUN, *flags]
    )
    return folder


# --- data -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "puzzle, rows",
    [
        ("1...............=", ["1234", "3412", "2143", "4321"]),
        # the third row could stand, the fourth cannot
        ("1...............=", ["1234", "3421", "2143", "4312"]),
        ("1...............=", ["1234", "3412", "2143", "4312"]),
        ("1...............=", ["2134", "3412", "1243", "4321"]),  # against a clue
        # a row that only a later clue rules out
        ("...........4....=", ["1234", "3412", "2143", "4321"]),
        ("................=", ["1234", "1243", "4321", "3412"]),
        ("................=", ["1134", "12a4", "", "12345"]),
    ],
)
def test_a_row_is_right_while_the_rest_of_the_grid_can_be_filled(puzzle, rows):
    lines = ["".join(row) for row in permutations("1234")]
    naive = [
        any(
            sudoku.is_valid(puzzle[:16], "".join(rows[:count]) + "".join(rest))
            for rest in product(lines, repeat=4 - count)
        )
        for count in range(1, 5)
    ]
    assert sudoku_steps.labels(puzzle, rows) == naive


def test_generated_solutions_are_of_their_split_reproducible_and_labelled_both_ways():
    rows, test = solutions_in_steps("train", 300), solutions_in_steps("test", 300)
    assert rows[:50] == solutions_in_steps("train", 50)
    assert rows[:50] != solutions_in_steps("train", 50, seed=1)
    assert {split_of(row.prompt) for row in rows} == {"train"}
    assert {split_of(row.prompt) for row in test} == {"test"}
    assert not {row.prompt for row in rows} & {
        problem.puzzle for problem in sudoku.problems("test", sudoku.DEFAULT_NUM_TEST)
    }
    for row in rows:
        assert len(row.completions) == 4 and all(len(step) == 4 for step in row.completions)
        assert row.labels == sorted(row.labels, reverse=True)  # nothing is right behind a wrong row
        assert row.labels[-1] == sudoku.is_valid(row.prompt[:16], "".join(row.completions))
    for number in range(4):
        assert 0.2 < sum(row.labels[number] for row in rows) / 300 < 0.95


def test_steps_are_written_and_read_in_the_format_of_trl(tmp_path):
    path = tmp_path / "new" / "steps.jsonl"
    step_data.main(["--num", "5", "--split", "test", "--seed", "2", "--output", str(path)])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [set(row) for row in rows] == [{"prompt", "completions", "labels"}] * 5
    assert read_steps(path) == solutions_in_steps("test", 5, seed=2)
    with pytest.raises(SystemExit, match="exists"):
        step_data.main(["--output", str(path)])


def test_a_full_disk_ends_with_one_line_and_leaves_nothing(tmp_path, full_disk):
    with full_disk(1_000), pytest.raises(SystemExit) as exit_info:
        step_data.main(["--num", "100", "--output", str(tmp_path / "steps.jsonl")])
    assert (
        str(exit_info.value.code)
        == f"error: {tmp_path / 'steps.jsonl'} could not be written ([Errno 27] File too large)"
    )
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="^error: /proc/x/y could not be written"):
        step_data.main(["--num", "1", "--output", "/proc/x/y"])


@pytest.mark.parametrize(
    "row, message",
    [
        ("{", "Expecting"),
        ("[1]", "expected .*, found list"),
        ('{"prompt": "a", "completions": ["b"]}', r"found keys \['completions', 'prompt'\]"),
        (
            '{"prompt": "a", "completions": ["b"], "labels": [true], "extra": 1}',
            r"found keys \['completions', 'extra'",
        ),
        ('{"prompt": "a", "completions": "b", "labels": [true]}', "a value of another type"),
        ('{"prompt": "a", "completions": ["b"], "labels": [1]}', "a value of another type"),
        (
            '{"prompt": "a", "completions": ["b", "c"], "labels": [true]}',
            "2 completions but 1 labels",
        ),
        ('{"prompt": "a", "completions": [], "labels": []}', "completions is empty"),
        (
            '{"prompt": "a", "completions": ["\\ud800"], "labels": [true]}',
            "not UTF-8 text: lone surrogate",
        ),
        (
            '{"prompt": "a\udcff", "completions": ["b"], "labels": [true]}',
            "not UTF-8 text: byte 0xff, .* at character 14",
        ),
        ('{"prompt": ' + "[" * 100000, "nested too deeply"),
    ],
)
def test_a_malformed_row_is_refused_by_file_and_line(tmp_path, row, message):
    path = tmp_path / "steps.jsonl"
    path.write_text(
        '{"prompt": "a", "completions": ["b"], "labels": [true]}\n\n' + row + "\n",
        encoding="utf-8",
        errors="surrogateescape",
    )
    with pytest.raises(ValueError, match=f"steps.jsonl:3: .*{message}"):
        read_steps(path)


# --- the loss -------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_steps_at_the_last_token_of_each_separator(base):
    tokenizer, model = load_tokenizer(base), reward._classifier(base, seed=1).eval()
    rows = [StepRow("ab", ["c", "de;"], [True, False]), StepRow("f", ["g"], [False])]
    batch = collate_steps(7)([step_encoder(tokenizer, ";\n")(row) for row in rows])
    total, log_odds = 0.0, []
    for row in rows:
        text = row.prompt
        for step, label in zip(row.completions, row.labels):
            text += step + ";\n"
            ids = [tokenizer.bos_token_id] + [
                tokenizer.encode(symbol, add_special_tokens=False)[0] for symbol in text
            ]
            # a causal model's score needs only what is before
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].detach()
            total -= float(logits.log_softmax(-1)[int(label)])
            log_odds.append(float(logits[1] - logits[0]))
    loss = reward.token_class(model, batch, torch.Generator())
    assert loss.count == 3
    # of a pair of logits either errs: the cost of each of three steps by as much, their
    # difference by twice that
    bound = measured(lambda of: of(input_ids=torch.arange(200).view(8, 25)).logits, model)
    assert float(loss.sum.detach()) == pytest.approx(total, abs=3 * 2 * bound)
    assert loss.predictions[loss.labels != IGNORED].tolist() == pytest.approx(
        log_odds, abs=2 * bound
    )
    assert loss.labels[loss.labels != IGNORED].tolist() == [1, 0, 0]


def test_the_metrics_of_an_evaluation_in_closed_form():
    predictions = torch.tensor([[9.0, 2.0, 1.0], [9.0, -1.0, -2.0]])
    labels = torch.tensor([[IGNORED, 1, 0], [IGNORED, 1, 0]])
    assert reward.measure(predictions, labels) == {
        "step_auc": 0.75,
        "step_accuracy": 0.5,
        "right_share": 0.5,
    }
    # without a wrong step there is none
    assert "step_auc" not in reward.measure(predictions[:, :2], labels[:, :2])


# --- runs -----------------------------------------------------------------------------


def test_a_run_from_a_causal_lm_says_that_its_head_is_fresh_and_leaves_what_others_load(
    base, data, tmp_path, caplog
):
    folder = trained(
        base,
        data,
        tmp_path / "out",
        "--eval_data",
        str(data),
        "--eval_on_start",
        "--separator",
        ";",
    )
    assert (
        "no token-classification head: training starts from a fresh one (score.bias, score.weight)"
        in caplog.text
    )
    before, after = logged(folder, "eval_loss")
    assert after < before and len(logged(folder, "eval_step_auc")) == 2
    config = json.loads((folder / "config.json").read_text())
    assert config["step_separator"] == ";"
    assert config["architectures"] == ["Qwen2ForTokenClassification"]
    assert config["training"]["command"].startswith("python -m training.prm_sft --model ")
    assert config["training"]["metrics"]["loss"] == after
    model, found = AutoModelForTokenClassification.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    ids = AutoTokenizer.from_pretrained(folder)(
        "<|startoftext|>" + "4+4=" + "8;" + "9;", add_special_tokens=False, return_tensors="pt"
    )
    with torch.no_grad():
        expected = model.eval()(**ids).logits[0].softmax(-1)[[6, 8], 1].tolist()
        bound = measured(
            lambda of: of(input_ids=torch.arange(200).view(8, 25)).logits.softmax(-1), model
        )
    assert load_prm(PRMConfig(prm=str(folder)), "cpu").score([("4+4=", ["8", "9"])])[
        0
    ] == pytest.approx(expected, abs=bound)


def test_a_run_from_a_prm_keeps_its_head_and_its_separator(base, data, tmp_path, caplog):
    first = trained(base, data, tmp_path / "first", "--eval_data", str(data), "--separator", ";")
    caplog.clear()
    second = trained(first, data, tmp_path / "second", "--eval_data", str(data), "--eval_on_start")
    assert "fresh" not in caplog.text
    assert logged(second, "eval_loss")[0] == logged(first, "eval_loss")[-1]
    assert json.loads((second / "config.json").read_text())["step_separator"] == ";"


def test_a_resumed_run_equals_an_uninterrupted_one(base, data, tmp_path):
    flags = ["--save_strategy", "steps", "--save_steps", "4"]
    trained(base, data, tmp_path / "whole", *flags)
    trained(base, data, tmp_path / "cut", *flags)
    (tmp_path / "cut" / "checkpoint-6").rename(tmp_path / "unused")
    (tmp_path / "cut" / "model.safetensors").unlink()
    trained(base, data, tmp_path / "cut", *flags, "--resume")
    assert (tmp_path / "cut" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()
    assert logged(tmp_path / "cut", "loss") == logged(tmp_path / "whole", "loss")


def test_activation_checkpointing_changes_no_weight(base, data, tmp_path):
    kept = trained(base, data, tmp_path / "kept", "--separator", ";")
    recomputed = trained(
        base, data, tmp_path / "recomputed", "--separator", ";", "--gradient_checkpointing"
    )
    assert (kept / "model.safetensors").read_bytes() == (
        recomputed / "model.safetensors"
    ).read_bytes()


def test_rows_longer_than_the_context_are_skipped_and_counted(base, data, tmp_path, caplog):
    path = tmp_path / "steps.jsonl"
    write_rows(
        [
            *solutions_in_steps("train", 3),
            StepRow("q", ["x" * 61], [True]),
            StepRow("q", ["x" * 62], [True]),
        ],
        path,
    )
    job = reward.checkpoint_prm_job(PRMOptions(model=str(base), data=str(path)), seed=0)
    assert f"{path}: 1 of 5 rows are longer than 64 tokens and skipped" in caplog.text
    # BOS, puzzle with "=", 4 rows with a newline
    assert [len(example.input_ids) for example in job.train] == [38, 38, 38, 64]


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "give --preset NAME, or --model DIR with --data FILE.jsonl"),
        (["--preset", "sudoku5"], "--preset must be one of sudoku4_prm, got 'sudoku5'"),
        (["--preset", "sudoku4_prm", "--separator", ";"], "a preset brings its own data"),
        (["--model", "BASE"], "--model needs --data FILE.jsonl"),
        (["--model", "BASE", "--data", "absent.jsonl"], "absent.jsonl: no such data file"),
        (["--model", "BASE", "--data", "EMPTY"], "empty.jsonl: no rows"),
        (
            ["--model", "BASE", "--data", "DATA", "--separator", ""],
            "--separator '' has no token in the tokenizer of",
        ),
        (
            ["--model", "BASE", "--data", "DATA", "--max_length", "65"],
            "--max_length must be between 1 and the model's 64 tokens, got 65",
        ),
        (
            ["--model", "BASE", "--data", "DATA", "--max_length", "0"],
            "--max_length must be between 1 and the model's 64 tokens, got 0",
        ),
        (
            ["--model", "BASE", "--data", "DATA", "--max_length", "20"],
            "all 64 rows are longer than 20 tokens",
        ),
        (
            ["--model", "tiny", "--data", "DATA"],
            "model_type is 'llada', expected one of llama, mistral, qwen2, qwen3",
        ),
        (["--model", "./absent", "--data", "DATA"], "no such folder"),
        (["--model", "BASE", "--data", "DATA", "--resume"], "--resume: no checkpoint in"),
    ],
)
def test_bad_input_ends_with_one_clear_line(base, data, tmp_path, flags, message):
    (tmp_path / "empty.jsonl").write_text("\n")
    places = {"BASE": str(base), "DATA": str(data), "EMPTY": str(tmp_path / "empty.jsonl")}
    with pytest.raises(SystemExit) as exit_info:
        prm_sft.main(
            [
                *(places.get(flag, flag) for flag in flags),
                "--output_dir",
                str(tmp_path / "out"),
                "--use_cpu",
            ]
        )
    assert str(exit_info.value.code).startswith("error: ") and message in str(exit_info.value.code)
    assert "\n" not in str(exit_info.value.code)
    assert not (tmp_path / "out").exists()


def test_a_head_of_other_classes_and_one_that_lacks_tensors_are_refused(base, data, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = trained(base, data, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "id2label": {"0": "a", "1": "b", "2": "c"}})
    )
    with pytest.raises(ValueError, match="its head has 3 classes"):
        reward._classifier(folder, seed=0)
    (folder / "config.json").write_text(json.dumps(config))
    state = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in state.items() if name != "score.bias"},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ValueError, match="tensors are missing: score.bias"):
        reward._classifier(folder, seed=0)
    save_file(
        {**state, "score.0.weight": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match="its head has two layers"):
        reward._classifier(folder, seed=0)


def test_a_separator_of_backslash_and_n_is_taken_as_it_is_and_said(base, data, caplog):
    job = reward.checkpoint_prm_job(
        PRMOptions(model=str(base), data=str(data), separator=r"\n"), seed=0
    )
    assert job.model.config.step_separator == r"\n"
    assert "a backslash and an n, not a newline" in caplog.text


@pytest.mark.slow
def test_two_processes_train(base, data, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc_per_node",
            "2",
            "--standalone",
            "-m",
            "training.prm_sft",
            "--model",
            str(base),
            "--data",
            str(data),
            "--eval_data",
            str(data),
            "--eval_on_start",
            "--output_dir",
            str(tmp_path / "out"),
            *RUN,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    before, after = logged(tmp_path / "out", "eval_loss")
    assert after < before and done.stderr.count("training starts from a fresh one") == 1
    assert load_prm(PRMConfig(prm=str(tmp_path / "out")), "cpu").score([("q", ["a", "b"])])


# --- the shipped PRM ------------------------------------------------------------------


def test_the_shipped_prm_knows_the_tiny_models_right_rows_from_its_wrong_ones():
    found = reward.measure_answers(TINY / "prm", 100)
    for values in found.values():  # measured at n = 500: see "training" in its config.json
        assert values["step_auc"] > 0.95 and values["step_auc"] > values["confidence_auc"] + 0.15


def test_the_shipped_prm_says_how_it_was_made_and_loads_in_transformers():
    config = json.loads((TINY / "prm" / "config.json").read_text())
    assert config["step_separator"] == "\n" and config["step_split"] == "block"
    assert (
        config["training"]["command"]
        == "python -m training.prm_sft --preset sudoku4_prm --output_dir outputs/sudoku4_prm"
    )
    assert (
        min(
            values["step_auc"]
            for values in config["training"]["metrics"]["answers of the tiny model"].values()
        )
        > 0.95
    )
    assert sum(path.stat().st_size for path in (TINY / "prm").iterdir()) < 1e6
    _, found = AutoModelForTokenClassification.from_pretrained(
        TINY / "prm", output_loading_info=True
    )
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert AutoTokenizer.from_pretrained(TINY / "prm")("1\n", add_special_tokens=False)[
        "input_ids"
    ] == [load_tokenizer(TINY).encode(symbol)[0] for symbol in "1\n"]


@pytest.mark.slow
def test_the_preset_trains_such_a_prm(tmp_path):
    prm_sft.main(["--preset", "sudoku4_prm", "--output_dir", str(tmp_path / "out")])
    metrics = json.loads((tmp_path / "out" / "config.json").read_text())["training"]["metrics"]
    assert all(
        values["step_auc"] >= 0.95 for values in metrics["answers of the tiny model"].values()
    )
