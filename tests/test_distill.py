"""Distillation: a teacher's order against a naive decode, states of its trajectories, the loss
in plain loops, and the command: what it saves, resumes and refuses.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from llada_plugins.engine.engine import Engine, Request
from llada_plugins.models.loading import load_model
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.generate import generate
from llada_plugins.tasks import sudoku
from tests.family_checkpoints import with_tokenizer
from tests.small_training import (
    EOS_ID,
    MASK_ID,
    examples,
    short_run,
    small_model,
    with_other_tokens,
)
from tests.test_distributed import in_processes
from tests.tolerance import measured, rounding
from training import distill, sft
from training.data.examples import Example
from training.data.trajectories import Trajectories, Trajectory, collate_trajectories
from training.loop.distillation import Progress, Recipe, Stage, distilled, pseudo_states
from training.loop.random_streams import random_stream
from training.runs import distill_run, extraction
from training.runs.distill_presets import DISTILL_PRESETS
from training.runs.extraction import UnmaskingOrder, decoded, taught

pytestmark = pytest.mark.floats

D3LLM = Recipe(
    least_masked=0.0,
    last_least_masked=0.8,
    most_masked=0.8,
    first_window=2,
    last_window=4,
    order="teacher",
    complement=True,
    certainty=2.0,
    temperature=0.5,
    certainty_of="masked",
)
CHANGES = [
    {},
    dict(complement=False),
    dict(certainty=0.0),
    dict(certainty_of="all"),
    dict(order="random", least_masked=0.5, last_least_masked=0.5, most_masked=0.5),
    dict(first_window=100, last_window=100, most_masked=1.0),
]


def trajectories(num: int, seed: int = 0) -> list[Trajectory]:
    """Rows of several lengths, unmasked in a random order."""
    stream = random_stream("orders", seed)

    def shuffled(size: int) -> list[int]:
        return torch.randperm(size, generator=stream).tolist()

    rows = examples(num, seed)
    return [Trajectory(*row, shuffled(len(row.input_ids) - row.prompt_length)) for row in rows]


def batch_of(num: int, seed: int = 0) -> dict[str, torch.Tensor]:
    return collate_trajectories(EOS_ID)(trajectories(num, seed))


# --- the teacher's order --------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, dict(block_length=3), dict(block_length=4), dict(threshold=0.2), dict(steps=4)],
    ids=str,
)
def test_an_answers_order_replays_the_states_that_the_teacher_decoded_from(options):
    model, rows = small_model().requires_grad_(False), examples(5)
    sampler = SamplerConfig(gen_length=6, **options)
    found = decoded(model, rows, sampler)
    seen = []
    prompts = [row.input_ids[: row.prompt_length] for row in rows]
    samples = generate(model, prompts, sampler, on_step=seen.append)
    for number, ((row, num_forwards), sample) in enumerate(zip(found, samples)):
        assert row.input_ids == prompts[number] + sample.answer
        assert num_forwards == sample.num_forwards
        assert sorted(row.order) == list(range(6))
        standing = 0
        for step in seen:
            for place in (step.rows == number).nonzero()[:, 0].tolist():
                first = int(step.start[place])
                kept = (step.kept[place].nonzero()[:, 0] + first).tolist()
                kept = [each for each in kept if each < 6]  # what a last block has beyond is cut
                of_step = [row.order.index(standing + each) for each in range(len(kept))]
                assert sorted(of_step) == kept  # these tokens, and no others, come next
                score = step.score[place, torch.tensor(of_step, dtype=torch.long) - first]
                assert torch.equal(score, score.sort(descending=True).values)
                standing += len(kept)
        assert standing == 6


def test_a_batch_that_is_decoded_again_leaves_the_order_of_the_last_time():
    model, rows = small_model().requires_grad_(False), examples(3)
    sampler = SamplerConfig(gen_length=4)
    expected = [row.trajectory.order for row in decoded(model, rows, sampler)]
    order, steps = UnmaskingOrder(3, 4), []
    prompts = [row.input_ids[: row.prompt_length] for row in rows]
    generate(model, prompts, sampler, on_step=steps.append)
    for step in [*steps[:2], *steps]:
        order(step)
    assert order.ranks().tolist() == expected


# --- rows -----------------------------------------------------------------------------


def test_trajectories_come_back_as_they_were_from_memory_and_from_a_folder(tmp_path):
    rows = trajectories(7)
    assert list(Trajectories(rows)) == rows == list(Trajectories(rows, tmp_path))
    assert list(Trajectories.load(tmp_path)) == rows


def test_padding_is_what_a_teacher_would_have_unmasked_last():
    batch = collate_trajectories(EOS_ID)(
        [Trajectory([1, 2, 3], 1, [1, 0]), Trajectory([4, 5, 6, 7, 8], 2, [2, 0, 1])]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3, EOS_ID, EOS_ID], [4, 5, 6, 7, 8]]
    assert batch["order"].tolist() == [[-1, 1, 0, 2, 3], [-1, -1, 2, 0, 1]]


# --- states ---------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 2, 3, 100])
@pytest.mark.parametrize("share", [(0.0, 1.0), (0.5, 0.5), (0.8, 1.0)])
def test_states_are_those_of_the_teachers_order_in_one_window(window, share):
    batch = batch_of(300)
    tokens, answer, order = batch["input_ids"], batch["weight"] > 0, batch["order"]
    states = pseudo_states(batch, Stage(*share, window), MASK_ID, random_stream("states"))
    state, complement = states
    windows = set()
    for number in range(len(tokens)):
        first = int(answer[number].int().argmax())
        learned = state.learned[number].nonzero()[:, 0].tolist()
        shown = complement.learned[number].nonzero()[:, 0].tolist()
        of_window = sorted(learned + shown)
        assert learned and of_window == list(range(of_window[0], of_window[-1] + 1))
        assert (of_window[0] - first) % window == 0
        size = min(window, tokens.shape[1] - of_window[0])
        assert len(of_window) == size
        windows.add((of_window[0] - first) // window)
        masks = {len(learned)}
        least, most = (size - int((1 - each) * size) for each in share)
        assert masks <= set(range(max(1, least), max(1, most) + 1))
        # what the teacher unmasked first stands
        assert not shown or order[number, shown].max() < order[number, learned].min()
        for seen, own in ((state.tokens, learned), (complement.tokens, shown)):
            masked = [*own, *range(of_window[-1] + 1, tokens.shape[1])]
            expected = tokens[number].clone()
            expected[masked] = MASK_ID
            assert torch.equal(seen[number], expected)
    longest = int(answer.sum(-1).max())
    assert windows == set(range(-(-longest // window)))  # each is drawn


def test_masks_of_a_random_order_do_not_follow_the_teachers():
    batch = batch_of(200)
    stage = Stage(0.5, 0.5, 100)
    counts = []
    for order in ("teacher", "random"):
        state, _ = pseudo_states(batch, stage, MASK_ID, random_stream("order"), order=order)
        counts.append(state.learned.sum(-1))
        learned, shown = state.learned, (batch["weight"] > 0) & ~state.learned
        latest = batch["order"].masked_fill(~shown, -1).amax(-1)
        earliest = batch["order"].masked_fill(~learned, 99).amin(-1)
        assert bool((latest < earliest).all()) == (order == "teacher")
    assert torch.equal(*counts)


def test_noise_and_window_rise_linearly_and_noise_to_its_upper_end_at_most():
    recipe = replace(D3LLM, least_masked=0.2, most_masked=0.8, first_window=16, last_window=32)
    assert recipe.stage(0.0) == Stage(0.2, 0.8, 16)
    assert recipe.stage(0.5) == Stage(0.5, 0.8, 24)
    assert recipe.stage(1.0) == Stage(0.8, 0.8, 32)
    held = replace(recipe, least_masked=0.25, last_least_masked=0.75)
    assert held.stage(0.5) == Stage(0.5, 0.8, 24)


# --- the loss -------------------------------------------------------------------------


def naive_loss(model, batch, recipe: Recipe, progress: float, generator) -> torch.Tensor:
    """The objective's sum, row by row and token by token."""
    stage = recipe.stage(progress)
    states = pseudo_states(batch, stage, MASK_ID, generator, order=recipe.order)
    total = torch.zeros(())
    for number, state in enumerate(states if recipe.complement else states[:1]):
        log_p = model(state.tokens).log_softmax(-1)
        for row, learned in enumerate(state.learned):
            costs, entropies = [], []
            for column in learned.nonzero()[:, 0].tolist():
                target = int(batch["input_ids"][row, column])
                costs.append(-log_p[row, column, target])
                sharper = (log_p[row, column] / recipe.temperature).exp()
                sharper = sharper / sharper.sum()
                if int(log_p[row, column].argmax()) == target:
                    entropies.append(sum(-each * each.log() for each in sharper))
            if costs:
                total = total + sum(costs) / len(costs)
            if entropies and (number == 0 or recipe.certainty_of == "all"):
                total = total + recipe.certainty * sum(entropies) / len(entropies)
    return total


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_the_loss_is_that_of_plain_loops(changes):
    recipe, batch, model = replace(D3LLM, **changes), batch_of(24), small_model().train()

    def naive(of):
        return naive_loss(of, batch, recipe, 0.5, random_stream("loss"))

    loss = distilled(MASK_ID, recipe, lambda: 0.5)(model, batch, random_stream("loss"))
    wanted = naive(model)
    assert abs(float(loss.count) - 24) <= rounding(30, loss.count)  # each row's weights sum to 1
    # of hundreds of numbers: the sum's terms err as these losses of single tokens do
    error = measured(lambda of: of(batch["input_ids"]).log_softmax(-1), model)
    assert abs(float((loss.sum - wanted).detach())) <= 24 * 2 * (1 + recipe.certainty * 12) * error
    assert float(wanted.detach()) > 24


def test_certainty_moves_right_tokens_alone_and_towards_their_best_prediction():
    model, batch = small_model().train(), batch_of(16)
    both = [
        distilled(MASK_ID, replace(D3LLM, certainty=weight), lambda: 1.0)(
            model, batch, random_stream("certain")
        ).sum
        for weight in (0.0, 1.0, 2.0)
    ]
    entropy = both[1] - both[0]
    assert float(entropy.detach()) > 0  # some random predictions are right
    # its weight is a factor: four sums of 16 rows, each after a few roundings
    left = (both[2] - both[0] - 2 * entropy).detach()
    assert abs(float(left)) <= rounding(4 * 20, both[2])


def test_an_evaluation_has_the_last_window_and_all_noises_whatever_the_progress():
    model, batch = small_model().eval(), batch_of(16)
    found = [
        distilled(MASK_ID, D3LLM, lambda done=done: done)(model, batch, random_stream(0)).sum
        for done in (0.0, 1.0)
    ]
    assert torch.equal(*found)
    whole = replace(D3LLM, first_window=D3LLM.last_window)
    training = distilled(MASK_ID, whole, lambda: 0.0)(model.train(), batch, random_stream(0))
    assert torch.equal(training.sum, found[0])


# --- the command ----------------------------------------------------------------------

UPDATE = dict(max_steps=1, learning_rate=1e-2, warmup_steps=0)
SHORT = dict(
    **{**UPDATE, "max_steps": 4},
    teacher_length=6,
    first_window=2,
    last_window=4,
    seed=3,
)


def flags(checkpoint, data, out, **given) -> list[str]:
    return short_run(model=checkpoint, data=data, output_dir=out, **{**SHORT, **given})


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_checkpoint, sudokus):
    """A run with a checkpoint after its second update."""
    out = tmp_path_factory.mktemp("distilled") / "whole"
    distill.main(flags(tiny_checkpoint, sudokus, out, save_strategy="steps", save_steps=2))
    return out


def test_the_result_is_an_ordinary_checkpoint(whole, tiny_checkpoint):
    model, before = (load_model(folder, device="cpu") for folder in (whole, tiny_checkpoint))
    assert model.config == before.config
    assert not torch.equal(model.embedding.weight, before.embedding.weight)
    engine = Engine("llada", pretrained=str(whole), device="cpu", gen_length=8)
    [(_, completion)] = engine.generate([Request("1...=", engine.sampler)])
    assert completion.num_forwards == 8


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    whole, tmp_path, tiny_checkpoint, sudokus
):
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoint-4")
    (cut / "model.safetensors").unlink()
    given = dict(save_strategy="steps", save_steps=2, resume=True)
    distill.main(flags(tiny_checkpoint, sudokus, cut, **given))
    expected, found = (load_file(out / "model.safetensors") for out in (whole, cut))
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    with pytest.raises(SystemExit, match="was trained with --last_window 4, given is 6"):
        distill.main(flags(tiny_checkpoint, sudokus, cut, **given, last_window=6))
    with pytest.raises(SystemExit, match="was trained on other data"):
        distill.main(flags(tiny_checkpoint, sudokus, cut, **given, teacher="tiny"))


def test_the_stage_depends_on_the_updates_done_alone():
    class State:
        global_step, max_steps = 30, 40

    progress = Progress()
    progress.on_step_begin(None, State, None)
    assert progress.done == 0.75


def test_adapters_are_trained_in_place_of_weights(tmp_path, tiny_checkpoint, sudokus):
    out = tmp_path / "lora"
    distill.main(flags(tiny_checkpoint, sudokus, out, lora=True, lora_r=2, max_steps=1))
    assert not list(out.glob("model*.safetensors"))
    plain = load_model(tiny_checkpoint, device="cpu").state_dict()
    adapted = load_model(tiny_checkpoint, peft=out, device="cpu").state_dict()
    changed = {name for name in plain if not torch.equal(plain[name], adapted[name])}
    assert changed and all(".blocks." in name for name in changed)


@pytest.mark.slow
def test_kept_trajectories_are_found_again_and_another_teacher_has_its_own(
    tmp_path, tiny_checkpoint, sudokus, monkeypatch
):
    other = tmp_path / "other"
    sft.main(short_run(model=tiny_checkpoint, data=sudokus, output_dir=other, **UPDATE))
    calls = []

    def counting(teacher, rows, sampler, share):
        calls.append(len(rows))
        return decoded(teacher, rows, sampler, share)

    monkeypatch.setattr(extraction, "decoded", counting)
    given = dict(trajectories=tmp_path / "kept", max_steps=1, teacher_batch=5)
    own_rule = dict(teacher_threshold=0.9, canonical=0.5)
    for number, more in enumerate([{}, {}, dict(teacher=other), own_rule]):
        distill.main(flags(tiny_checkpoint, sudokus, tmp_path / f"{number}", **given, **more))
    assert calls == [5, 5, 2] * 3
    assert len(list((tmp_path / "kept").iterdir())) == 3
    first, second, third = (
        load_file(tmp_path / f"{number}" / "model.safetensors") for number in range(3)
    )
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert any(not torch.equal(tensor, third[name]) for name, tensor in first.items())


def test_a_model_takes_the_place_of_the_one_that_a_preset_starts_from(
    tmp_path, sudokus, monkeypatch
):
    mine = tmp_path / "mine"
    rate = {**UPDATE, "learning_rate": 1e-5}
    sft.main(short_run(model="tiny", data=sudokus, output_dir=mine, **rate))
    preset = DISTILL_PRESETS["sudoku4"]
    few = list(sudoku.problems("train", 4))
    monkeypatch.setitem(DISTILL_PRESETS, "sudoku4", replace(preset, pairs=lambda: (few, few)))
    out = tmp_path / "out"
    words = ["--preset", "sudoku4", "--model", str(mine), "--output_dir", str(out)]
    # a rate of 0 leaves the weights that the run starts from
    distill.main([*words, "--max_steps", "1", "--learning_rate", "0"])
    given, begun, shipped = (
        load_model(folder, device="cpu").state_dict() for folder in (mine, out, "tiny")
    )
    assert all(torch.equal(tensor, begun[name]) for name, tensor in given.items())
    assert any(not torch.equal(tensor, shipped[name]) for name, tensor in given.items())
    described = json.loads((out / "run.json").read_text())
    assert described["options"]["canonical"] == preset.arguments["canonical"]
    assert described["arguments"]["learning_rate"] == 0


def test_right_answers_alone_are_learned(tmp_path, tiny_checkpoint, sudokus, caplog):
    rows = [json.loads(line) for line in sudokus.read_text().splitlines()]
    teacher = load_model(tiny_checkpoint, device="cpu")
    data = tmp_path / "data.jsonl"
    # two rows hold what the teacher says, one of them with EOS after it
    with data.open("w") as file:
        for number, row in enumerate(rows[:4]):
            ids = [each % 250 for each in row["prompt"].encode()]
            [sample] = generate(teacher, [ids], SamplerConfig(gen_length=6))
            answer = sample.answer if number < 2 else [1, 2, 3]
            file.write(json.dumps({"input_ids": ids + answer, "prompt_length": len(ids)}) + "\n")
    with caplog.at_level("INFO"):
        distill.main(flags(tiny_checkpoint, data, tmp_path / "out", answers="right", max_steps=1))
    assert "2 of 4 answers are right: the others are left out" in caplog.text
    with pytest.raises(SystemExit, match="none of the teacher's 12 answers is right: give") as end:
        distill.main(flags(tiny_checkpoint, sudokus, tmp_path / "none", answers="right"))
    assert "\n" not in str(end.value.code)
    assert not (tmp_path / "none").exists() or not list((tmp_path / "none").iterdir())


def test_a_wrong_canonical_answer_is_decoded_again_with_the_next_share(tmp_path, monkeypatch):
    shares = [0.01, 0.3, 1.0]
    preset = DISTILL_PRESETS["sudoku4"]
    puzzles = [each for each in sudoku.problems("train", 60) if each.puzzle.count(".") > 12]
    monkeypatch.setitem(
        DISTILL_PRESETS, "sudoku4", replace(preset, pairs=lambda: (puzzles, puzzles))
    )
    learned = []

    def seen(*given):
        learned.append(taught(*given))
        return learned[0]

    monkeypatch.setattr(distill_run, "taught", seen)
    words = ["--preset", "sudoku4", "--eval_strategy", "no", "--max_steps", "1"]
    words += ["--canonical", *map(str, shares), "--output_dir", str(tmp_path / "out")]
    distill.main(words)
    found = [row.input_ids for row in learned[0][0]]
    engine = Engine("llada", device="cpu", threshold=0.99, gen_length=16)
    expected, by_share = [], []
    for puzzle, _ in puzzles:
        prompt = engine.encode(puzzle)
        for share in shares:
            row = Example(prompt + [0] * 16, len(prompt))
            ((answer, _),) = decoded(engine.model, [row], engine.sampler, share)
            if sudoku.is_valid(puzzle, engine.tokenizer.decode(answer.input_ids[len(prompt) :])):
                expected.append(answer.input_ids)
                by_share.append(share)
                break
    assert found == expected
    assert set(by_share) == set(shares)


@pytest.mark.parametrize(
    "given, line",
    [
        (dict(least_masked=0.9), "--least_masked and --most_masked must be between 0 and 1"),
        (dict(most_masked=math.nan), "--least_masked and --most_masked must be between 0 and 1"),
        (dict(last_least_masked=0.9), "--last_least_masked must be between --least_masked and"),
        (dict(certainty=-1), "--certainty must be a number from 0 up, got -1"),
        (dict(certainty_temperature=0), "--certainty_temperature must be above 0, got 0"),
        (dict(first_window=0), "--first_window must be at least 1, got 0"),
        (dict(teacher_batch=0), "--teacher_batch must be at least 1, got 0"),
        (dict(complement="false", certainty_of="all"), "--certainty_of all is of the complement"),
        (dict(teacher_steps=2, teacher_threshold=0.5), "are alternatives: give one"),
        (dict(teacher_threshold=1.5), "--teacher_threshold must be above 0 and at most 1"),
        (dict(canonical=0.1), "--canonical needs --teacher_threshold, which says of what"),
        (dict(canonical=0, teacher_threshold=0.9), "--canonical must be above 0 and at most 1"),
        (
            dict(canonical=[0.1, 0.5], teacher_threshold=0.9),
            "--canonical of several shares needs --answers right, which says which is wrong",
        ),
        (dict(teacher="nowhere"), "--teacher='nowhere': no such folder"),
        (dict(teacher_length=500), "do not fit|fits|context"),
        (dict(order="mine"), "order"),
    ],
    ids=str,
)
def test_bad_options_end_with_one_line_before_anything_is_written(
    tmp_path, tiny_checkpoint, sudokus, given, line, capsys
):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as end:
        distill.main(flags(tiny_checkpoint, sudokus, out, **given))
    said = str(end.value.code)
    if said == "2":  # argparse has printed its line
        said = capsys.readouterr().err.strip().splitlines()[-1]
    assert any(part in said for part in line.split("|")), said
    assert "\n" not in said
    assert not out.exists() or not list(out.iterdir())


def test_a_teacher_of_other_tokens_is_refused(tmp_path, tiny_checkpoint, sudokus):
    teacher = with_other_tokens(tiny_checkpoint, tmp_path / "teacher")
    with pytest.raises(SystemExit, match="has another tokenizer than the model that is trained"):
        distill.main(flags(tiny_checkpoint, sudokus, tmp_path / "out", teacher=teacher))


def test_block_causal_models_are_refused_before_their_weights_are_read(tmp_path, sudokus):
    a2d = with_tokenizer("a2d_qwen3", tmp_path / "checkpoint")
    with pytest.raises(SystemExit, match="has block-causal attention, where nothing is masked"):
        distill.main(
            flags(a2d, sudokus, tmp_path / "out", attention="block_causal", block_length=4)
        )


@pytest.mark.slow
def test_two_processes_decode_and_train_what_one_does(tmp_path, tiny_checkpoint, sudokus):
    given = dict(teacher_batch=5, max_steps=2, per_device_train_batch_size=2)
    for number, micro_batches in ((1, 2), (2, 1)):
        out, more = tmp_path / f"{number}", dict(gradient_accumulation_steps=micro_batches)
        words = flags(tiny_checkpoint, sudokus, out, **given, **more)
        in_processes(number, lambda words=words: distill.main(words), tmp_path / "note")
    one, two = (
        [
            json.loads(line)["loss"]
            for line in (tmp_path / name / "metrics.jsonl").open()
            if "loss" in json.loads(line)
        ]
        for name in "12"
    )
    identities = [
        json.loads((tmp_path / name / "run.json").read_text())["identity"] for name in "12"
    ]
    assert identities[0] == identities[1]  # of model and trajectories
    model = load_model(tiny_checkpoint, device="cpu")
    tokens = torch.arange(24)[None]
    error = measured(lambda of: of(tokens).log_softmax(-1), model)
    assert abs(one[0] - two[0]) <= 2 * (1 + 2 * 40) * error
