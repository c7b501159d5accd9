"""Golden data: each recorded case is reproduced, and the check of it names what is not."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llada_plugins.likelihood.estimate import log_likelihood
from llada_plugins.models.loading import save_model
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.generate import generate
from tests.check_golden import CHECKS, RUNS, check, config_of, load, main, recordings, sets

pytestmark = pytest.mark.floats

GOLDEN = Path(__file__).parent / "golden"
SETS = [folder for each in sorted(GOLDEN.iterdir()) for folder in sets(each)]
FILES = [path for folder in SETS for path in recordings(folder)]


def test_every_kind_of_recording_is_among_the_golden_files():
    assert {path.name for path in FILES} == CHECKS.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_recorded_case_is_reproduced(path):
    report = check(path)
    assert not report.misses, "\n".join([report.summary, *report.misses])


# ---- the check itself


@pytest.fixture
def excerpt(tmp_path) -> Path:
    """A folder with the first cases of our recordings, each file of which a test may change."""
    folder = tmp_path / "excerpt"
    shutil.copytree(GOLDEN / "llada", folder)
    for name, key in (
        ("generate.json", "cases"),
        ("parallel.json", "cases"),
        ("likelihood.json", "rows"),
    ):
        recorded = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**recorded, key: recorded[key][:4]}))
    return folder


def printed(capsys: pytest.CaptureFixture[str], *folders: Path) -> tuple[int, list[str], str]:
    """Exit status, lines and errors of a run."""
    status = main([str(folder) for folder in folders])
    captured = capsys.readouterr()
    return status, captured.out.splitlines(), captured.err


def test_a_good_folder_gets_a_line_for_each_file_with_its_own_number_of_cases(excerpt, capsys):
    status, lines, errors = printed(capsys, excerpt)
    assert (status, errors) == (0, "")
    expected = [
        "generate 4/4 identical, forwards 4/4",
        "likelihood 4/4 enumerated, max .d. .* nats; published means 4/4, together .* errors off",
        r"logits max .d. \S+, relative \S+ \(hidden_0 \S+ of .*, logits .*, padded_logits .*\)",
        "parallel 4/4 identical, forwards 4/4",
    ]
    assert len(lines) == 4
    for line, pattern in zip(lines, expected):
        assert re.fullmatch(f"{re.escape(str(excerpt))}: {pattern}", line), line


def edit_json(path: Path, key: str, number: int, **fields) -> None:
    recorded = json.loads(path.read_text())
    recorded[key][number].update(fields)
    path.write_text(json.dumps(recorded))


def case_of(path: Path, number: int) -> dict:
    return json.loads(path.read_text())["cases"][number]


def test_steps_beyond_the_tokens_count_as_the_published_code_spends_them(excerpt):
    path = excerpt / "generate.json"
    recorded = json.loads((GOLDEN / "llada" / path.name).read_text())
    case = next(
        case
        for case in recorded["cases"]
        if case["options"]["steps"] == case["options"]["gen_length"]
    )
    case["num_forwards"] = case["options"]["steps"] = 2 * case["options"]["steps"]
    path.write_text(json.dumps({**recorded, "cases": [case]}))
    assert not check(path).misses


def change_answer(folder: Path) -> None:
    answers = case_of(folder / "generate.json", 2)["answers"]
    answers[0][1] += 1
    edit_json(folder / "generate.json", "cases", 2, answers=answers)


def shorten_answer(folder: Path) -> None:
    answer = case_of(folder / "parallel.json", 1)["answer"]
    edit_json(folder / "parallel.json", "cases", 1, answer=answer[:-1])


def count_more_forwards(folder: Path) -> None:
    num_forwards = case_of(folder / "parallel.json", 3)["num_forwards"]
    edit_json(folder / "parallel.json", "cases", 3, num_forwards=num_forwards + 1)


def give_unknown_option(folder: Path) -> None:
    options = case_of(folder / "generate.json", 1)["options"]
    edit_json(folder / "generate.json", "cases", 1, options={**options, "treshold": 0.5})


def change_likelihood(folder: Path) -> None:
    row = json.loads((folder / "likelihood.json").read_text())["rows"][0]
    edit_json(folder / "likelihood.json", "rows", 0, exact=row["exact"] + 2e-4)


def change_published_mean(folder: Path) -> None:
    row = json.loads((folder / "likelihood.json").read_text())["rows"][1]
    mean = row["official_mc128_mean"] + 12 * row["official_mc128_std"] / RUNS**0.5
    edit_json(folder / "likelihood.json", "rows", 1, official_mc128_mean=mean)


def change_every_published_mean(folder: Path) -> None:
    """By too little to be seen in a row."""
    rows = json.loads((folder / "likelihood.json").read_text())["rows"]
    for number, row in enumerate(rows):
        mean = row["official_mc128_mean"] + 5 * row["official_mc128_std"] / RUNS**0.5
        edit_json(folder / "likelihood.json", "rows", number, official_mc128_mean=mean)


def change_tensor(
    folder: Path, name: str, file: str = "logits.safetensors", by: float = 1e-3
) -> None:
    tensors = load_file(folder / file)
    tensors[name].view(-1)[-1] += by
    save_file(tensors, folder / file)


def add_tensor(folder: Path) -> None:
    tensors = load_file(folder / "logits.safetensors")
    save_file({**tensors, "half8_logits": tensors["logits"].clone()}, folder / "logits.safetensors")


def empty_cases(folder: Path) -> None:
    (folder / "generate.json").write_text('{"mask_id": 336, "cases": []}')


def overwrite(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text("{")


CHANGES = {
    "a token": (
        change_answer,
        r"generate: case 2: \{.*\}: answer 0 has \d+ at token 1, recorded \d+",
    ),
    "a length": (
        shorten_answer,
        r"parallel: case 1: \{.*\}: answer 0 has \d+ tokens, recorded \d+",
    ),
    "forwards": (
        count_more_forwards,
        r"parallel: case 3: \{.*\}: \[\d+\] forwards, recorded \d+",
    ),
    "an option": (give_unknown_option, r"generate: case 1: .*unknown option 'treshold'"),
    "an enumerated value": (
        change_likelihood,
        r"likelihood: row 0: estimator=exact gives .*, recorded -20\.606",
    ),
    "a published mean": (
        change_published_mean,
        r"likelihood: row 1: estimator=published gives .* standard errors off",
    ),
    "all published means": (
        change_every_published_mean,
        r"likelihood: all rows: estimator=published is .* standard errors off",
    ),
    "a logit": (
        lambda folder: change_tensor(folder, "logits"),
        r"logits: logits: max \|d\| 1\.0e-03, allowed .*e-05",
    ),
    "a padded logit": (
        lambda folder: change_tensor(folder, "padded_logits"),
        r"logits: padded_logits: max \|d\| ",
    ),
    "no number": (
        lambda folder: change_tensor(folder, "hidden_1", by=float("nan")),
        r"logits: hidden_1: max \|d\| inf",
    ),
    "an unknown output": (
        add_tensor,
        "logits: half8_logits: no such output here; there are hidden_0, ",
    ),
    "no cases": (empty_cases, "generate: cases must be a list of at least one case"),
    "not JSON": (overwrite("generate.json"), "generate: Expecting property name"),
    "not tensors": (overwrite("logits.safetensors"), "logits: .*header"),
    "no checkpoint": (
        lambda folder: shutil.rmtree(folder / "checkpoint"),
        "parallel: .*excerpt/checkpoint",
    ),
    "a file without a check": (
        overwrite("generate_noted.json"),
        "generate_noted: no check has this name; there are generate.json, ",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_as_recorded_ends_in_1_with_a_line_that_names_it(excerpt, capsys, change):
    damage, expected = CHANGES[change]
    damage(excerpt)
    for path in recordings(excerpt):  # what has to be told is of one, or of all together
        if path.stem not in (expected.partition(":")[0], "logits"):
            path.unlink()
    status, lines, errors = printed(capsys, excerpt)
    assert (status, errors) == (1, "")
    assert any(re.match(f"{re.escape(str(excerpt))}: {expected}", line) for line in lines), lines


@pytest.mark.parametrize(
    "folder, tensor, misses",
    [
        ("gptq", "dequantised.model.transformer.blocks.0.k_proj.weight", 2),  # also left packed
        ("remedi", "padded_confidence", 1),
    ],
)
def test_a_changed_output_is_named_once_for_each_form_of_the_model(
    tmp_path, capsys, folder, tensor, misses
):
    copied = Path(shutil.copytree(GOLDEN / folder, tmp_path / folder))
    change_tensor(copied, tensor, "outputs.safetensors")
    status, lines, _ = printed(capsys, copied)
    name = tensor.removeprefix("dequantised.")
    assert status == 1 and len(lines) == 1 + misses
    assert all(line.startswith(f"{copied}: outputs: {name}: ") for line in lines[1:])


@pytest.mark.parametrize(
    "layout, message",
    [
        ((), "nothing to check: it has none of generate.json, generate_mdlm.json, "),
        (("outputs/", "notes.txt", "config.json"), "nothing to check: it has none of "),
        (None, "no such folder"),
    ],
)
def test_a_folder_of_an_unknown_layout_is_an_error_in_a_line_and_the_others_are_checked(
    excerpt, tmp_path, capsys, layout, message
):
    folder = tmp_path / "given"
    if layout is not None:
        folder.mkdir()
        for name in layout:
            (folder / name).mkdir() if name.endswith("/") else (folder / name).write_text("{}")
    status, lines, errors = printed(capsys, folder, excerpt)
    assert status == 1 and len(lines) == 4
    assert errors.startswith(f"error: {folder}: {message}") and errors.count("\n") == 1


def record(model, folder: Path) -> None:
    """Recordings of the model's own outputs, in the layout of published ones."""
    save_model(model, folder / "checkpoint")
    special = {"mask_id": model.config.mask_token_id, "eos_id": model.config.eos_token_id}
    cases, prompts = [], [[5, 6, 7], [8]]
    for options in ({"gen_length": 6}, {"gen_length": 8, "block_length": 4, "cfg_scale": 1.0}):
        samples = generate(model, prompts, SamplerConfig(**options))
        forwards = samples[0].num_forwards
        answers = [sample.answer for sample in samples]
        cases.append(
            {"prompts": prompts, "options": options, "answers": answers, "num_forwards": forwards}
        )
    (folder / "generate.json").write_text(json.dumps({**special, "cases": cases}))
    rows = []
    for pair in ([1, 2], [3, 4, 5]), ([6], [7]), ([8, 9], [10, 11]):
        (exact,) = log_likelihood(model, [pair], estimator="exact")
        (mean,) = log_likelihood(model, [pair], estimator="published", seed=1, mc_num=1024)
        std = mean.stderr * RUNS**0.5
        official = {"official_mc128_mean": mean.value, "official_mc128_std": std}
        rows.append({"prompt": pair[0], "answer": pair[1], "exact": exact.value, **official})
    (folder / "likelihood.json").write_text(json.dumps({**special, "rows": rows}))
    ids = torch.arange(12).view(2, 6)
    with torch.inference_mode():
        outputs = {"input_ids": ids, "logits": model(ids).clone()}
    save_file(outputs, folder / "outputs.safetensors")


def test_another_set_of_other_weights_shapes_ids_and_counts_is_checked_whole(
    tmp_path, make_model, capsys
):
    folder = tmp_path / "other"
    record(make_model(n_kv_heads=2, weight_tying=True, mask_token_id=33, rope_theta=5e3), folder)
    status, lines, errors = printed(capsys, folder)
    assert (status, errors) == (0, ""), lines
    assert lines[0].endswith("generate 2/2 identical, forwards 2/2")
    assert "likelihood 3/3 enumerated" in lines[1] and "published means 3/3" in lines[1]
    assert "outputs max |d| 0e+00, relative 0.0e+00 (logits 0e+00 of " in lines[2]
    record(make_model(seed=1), tmp_path / "wrong")
    shutil.copytree(tmp_path / "wrong" / "checkpoint", folder / "checkpoint", dirs_exist_ok=True)
    status, lines, _ = printed(capsys, folder)
    assert status == 1 and "generate 0/2 identical, forwards 2/2" in lines[0]


@pytest.mark.parametrize("alg", ("maskgit_plus", "topk_margin", "origin"))
def test_cached_dream_without_a_threshold_trusts_by_entropy_whatever_its_alg(alg):
    path = GOLDEN / "families" / "dream" / "parallel.json"
    model = load(path)
    case = next(each for each in json.loads(path.read_text())["cases"] if is_scheduled(each))
    other = {**case, "options": {**case["options"], "alg": alg}}
    assert config_of(other, model) == config_of(case, model)


def is_scheduled(case) -> bool:
    options = case["options"]
    return options["cache"] != "none" and options["threshold"] is None


def test_the_command_passes_over_a_readme(tmp_path):
    command = [sys.executable, "-m", "tests.check_golden", GOLDEN / "README.md", GOLDEN / "gptq"]
    done = subprocess.run(command, cwd=GOLDEN.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\S*gptq: outputs max \|d\| .*\n", done.stdout), done.stdout
