"""Likelihood tasks on local files: the same requests as from the hub's rows, finite
metrics from the stock commands, and perplexity.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

lm_eval = pytest.importorskip("lm_eval")

import lm_eval.tasks  # noqa: E402
from datasets import Dataset  # noqa: E402
from lm_eval import evaluate  # noqa: E402
from lm_eval.api.task import ConfigurableTask  # noqa: E402
from lm_eval.tasks import TaskManager, get_task_dict  # noqa: E402

from llada_plugins.lmeval_models import LLaDA  # noqa: E402
from tests.tolerance import likelihood_error  # noqa: E402

pytestmark = pytest.mark.floats

ROOT = Path(__file__).parents[1]
TASKS = ROOT / "configs" / "lmeval"
DATA = ROOT.parent / "shared" / "data"
STOCK = Path(lm_eval.tasks.__file__).parent
FOLDERS = (
    "arc",
    "hellaswag",
    "piqa",
    "winogrande",
    "openbookqa",
    "truthfulqa",
    "mmlu/default",
    "lambada",
    "wikitext",
)
SUBJECTS = sorted(
    path.stem.removeprefix("mmlu_") for path in (STOCK / "mmlu" / "default").glob("mmlu_*.yaml")
)
LETTERS = ["A", "B", "C", "D"]

STEMS = [
    "Which piece of equipment keeps mold spores from entering the lungs?",
    "Which describes a kitten's fur? ",
]
TEXTS = [
    ["safety goggles", "breathing mask", "rubber gloves", "lead apron"],
    ["gray", "warm", "long", "soft"],
]
ENDINGS = [
    [
        "is using wrap.",
        "is ripping level tiles off.",
        "is holding a cube.",
        "starts pulling up roofing.",
    ],
    ["[title] Upload it. [step] Wait.", "Do  nothing.", "Ask.", "Leave."],
]
GOALS = [
    {"goal": "dresser", "sol1": "replace drawer with bobby pin ", "sol2": "finish, woodgrain"},
    {
        "goal": 'Make an outdoor "pillow".',
        "sol1": "Blow into a tin can.",
        "sol2": "Don't: blow into a trash bag.",
    },
]
NAURU = [f"{name} is the smallest country." for name in ("Nauru", "Monaco", "The United States")]
SEEDS = ["They pass through you.", "Nothing happens.", "You get sick.", "You die."]
PAGES = [
    " = Homarus = \n \n Homarus gammarus , the <unk> , is a lobster . \n \n = = Name = = \n \n "
    'The " first " of 24 @.@ 2 . \n',
    " = 2 + 2 = 4 = \n \n A page about sums , 1 @,@ 000 of them : all 's well . \n",
]

# The same questions as rows of the hub's data sets and as rows of the local files.
HUB: dict[str, list[dict[str, Any]]] = {
    "arc_easy": [
        {"question": stem, "choices": {"text": texts, "label": LETTERS}, "answerKey": key}
        for stem, texts, key in zip(STEMS, TEXTS, "BD")
    ],
    "hellaswag": [
        {
            "activity_label": "Roof shingle removal",
            "ctx_a": "A man is sitting on a roof.",
            "ctx_b": "he",
            "endings": ENDINGS[0],
            "label": "3",
        },
        {
            "activity_label": "Computers",
            "ctx_a": "[header] How to sell videos [title] Sign up. [step] Ask mr. x",
            "ctx_b": "",
            "endings": ENDINGS[1],
            "label": "0",
        },
    ],
    "piqa": [{**row, "label": label} for row, label in zip(GOALS, (0, 1))],
    "winogrande": [
        {
            "sentence": "Sarah was better than Maria so _ always got the easier cases.",
            "option1": "Sarah",
            "option2": "Maria",
            "answer": "2",
        },
        {
            "sentence": "The wine would ruin the bed, but the _ was't ruined.",
            "option1": "blanket",
            "option2": "bed",
            "answer": "1",
        },
    ],
    "openbookqa": [
        {"question_stem": stem, "choices": {"text": texts, "label": LETTERS}, "answerKey": key}
        for stem, texts, key in zip(STEMS, TEXTS, "AC")
    ],
    "truthfulqa_mc1": [
        {
            "question": "Which is the smallest country?",
            "mc1_targets": {"choices": NAURU, "labels": [1, 0, 0]},
            "mc2_targets": {"choices": NAURU, "labels": [1, 0, 0]},
        },
        {
            "question": "What if you eat seeds?",
            "mc1_targets": {"choices": [SEEDS[0], *SEEDS[2:]], "labels": [1, 0, 0]},
            "mc2_targets": {"choices": [SEEDS[1], SEEDS[0], *SEEDS[2:]], "labels": [1, 1, 0, 0]},
        },
    ],
    "mmlu_anatomy": [
        {"question": stem, "subject": "anatomy", "choices": texts, "answer": answer}
        for stem, texts, answer in zip(STEMS, TEXTS, (1, 3))
    ],
    "lambada_openai": [
        {"text": "She said, \"I can make it,\n\nI don't care about signs"},
        {"text": '"No," replied Helen'},
    ],
    "wikitext": [{"page": page} for page in PAGES],
}
HUB["arc_challenge"], HUB["truthfulqa_mc2"] = HUB["arc_easy"], HUB["truthfulqa_mc1"]
GROUPS = [
    f"{name}_local"
    for name in (
        "arc",
        "hellaswag",
        "piqa",
        "winogrande",
        "openbookqa",
        "truthfulqa",
        "mmlu",
        "lambada",
        "wikitext",
    )
]


def local_rows() -> dict[str, list[dict[str, Any]]]:
    """The JSONL files, by name."""
    arc = [
        {"query": f"Question: {stem}", "choices": texts, "gold": gold}
        for stem, texts, gold in zip(STEMS, TEXTS, (1, 3))
    ]
    mmlu = [
        {"subject": subject, "question": stem, "choices": texts, "answer": answer}
        for subject in SUBJECTS
        for stem, texts, answer in zip(STEMS, TEXTS, "BD")
    ]
    return {
        "arc/arc_easy.jsonl": arc,
        "arc/arc_challenge.jsonl": arc,
        "piqa/dev.jsonl": GOALS,
        "mmlu/mmlu_test.jsonl": mmlu,
        "mmlu/mmlu_dev.jsonl": [
            {**row, "question": f"{row['question']} ({number})"}
            for row in mmlu
            for number in range(3)
        ],
        "winogrande/winogrande.jsonl": [
            {
                "context_options": [
                    "Sarah was better than Maria so Sarah",
                    "Sarah was better than Maria so Maria",
                ],
                "continuation": "always got the easier cases.",
                "gold": 1,
            },
            {
                "context_options": [
                    "The wine would ruin the bed, but the blanket",
                    "The wine would ruin the bed, but the bed",
                ],
                "continuation": "was't ruined.",
                "gold": 0,
            },
            *(
                {
                    "context_options": [f"{number} is", f"{number} was"],
                    "continuation": "here.",
                    "gold": 0,
                }
                for number in range(6)
            ),
        ],
        "openbookqa/test.jsonl": [
            {
                "id": "1",
                "answerKey": key,
                "question": {
                    "stem": stem,
                    "choices": [
                        {"text": text, "label": label} for text, label in zip(texts, LETTERS)
                    ],
                },
            }
            for stem, texts, key in zip(STEMS, TEXTS, "AC")
        ],
        "lambada/lambada_openai.jsonl": [
            {
                "context": "She said, \"I can make it,\n\nI don't care about",
                "continuation": "signs",
            },
            {"context": '"No," replied', "continuation": "Helen"},
        ],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small copies of the local files, in their formats."""
    root = tmp_path_factory.mktemp("data")
    for group in (
        "arc",
        "hellaswag",
        "lambada",
        "mmlu",
        "openbookqa",
        "piqa",
        "truthfulqa",
        "wikitext2",
        "winogrande",
    ):
        (root / group).mkdir()
    for name, rows in local_rows().items():
        (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "piqa" / "dev-labels.lst").write_text("0\n1\n")
    questions = [
        "A man is sitting on a roof. he",
        "[header] How to sell videos [title] Sign up. [step] Ask mr. x",
    ]
    lists = [
        [{"question": question, "choices": dict(zip(LETTERS, endings)), "answer": answer}]
        for question, endings, answer in zip(questions, ENDINGS, "DA")
    ]
    (root / "hellaswag" / "hellaswag_2000.json").write_text(
        json.dumps({"dataset": "hellaswag", "dev": lists[0], "test": lists[1]})
    )
    with (root / "truthfulqa" / "TruthfulQA.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "Type",
                "Category",
                "Question",
                "Best Answer",
                "Correct Answers",
                "Incorrect Answers",
                "Source",
            ]
        )
        writer.writerow(
            [
                "",
                "",
                "Which is the smallest country?",
                NAURU[0][:-1],
                NAURU[0][:-1],
                f"{NAURU[1][:-1]}; {NAURU[2]}",
                "",
            ]
        )
        writer.writerow(
            [
                "",
                "",
                "What if you eat seeds?",
                SEEDS[0][:-1],
                f"{SEEDS[1][:-1]}; {SEEDS[0]};",
                "; ".join(SEEDS[2:]),
                "",
            ]
        )
    # a blank line before the first title
    (root / "wikitext2" / "valid.txt").write_text(" \n" + "\n".join(PAGES))
    return root


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    """Our tasks and the folders of lm-eval that they take tasks from; an index of all
    of lm-eval takes ten seconds.
    """
    return TaskManager(
        include_path=[*(str(STOCK / name) for name in FOLDERS), str(TASKS)], include_defaults=False
    )


def tasks_of(manager: TaskManager, *names: Any) -> dict[str, ConfigurableTask]:
    return manager.load(list(names))["tasks"]


@pytest.fixture(scope="module")
def local(manager: TaskManager, folder: Path) -> dict[str, ConfigurableTask]:
    """Every task of llada_base_local, on the small copies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLADA_PLUGINS_DATA", str(folder))
        return tasks_of(manager, "llada_base_local")


def stock(manager: TaskManager, name: str) -> ConfigurableTask:
    """lm-eval's own task with every setting of its own, the hub's answer being HUB's rows."""
    rows = HUB[name]
    splits = {split: Dataset.from_list(rows) for split in ("train", "validation", "test")}
    if name == "mmlu_anatomy":
        splits["dev"] = Dataset.from_list(
            [
                {**row, "question": f"{row['question']} ({number})"}
                for row in rows
                for number in range(3)
            ]
        )
    return tasks_of(
        manager, {"group": "stock", "task": [{"task": name, "custom_dataset": lambda **_: splits}]}
    )[name]


def requests(
    task: ConfigurableTask, doc: dict[str, Any], num_fewshot: int
) -> list[tuple[str, ...]]:
    """What the model is asked about a question, as the evaluator builds it."""
    context = (
        ""
        if task.OUTPUT_TYPE == "loglikelihood_rolling"
        else task.fewshot_context(doc, num_fewshot)
    )
    found = task.construct_requests(doc, context)
    return [instance.args for instance in (found if isinstance(found, list) else [found])]


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", **variables}


@pytest.mark.parametrize("name", sorted(HUB))
def test_requests_targets_and_metrics_are_those_of_the_stock_task_on_the_hubs_rows(
    manager, local, name
) -> None:
    ours, theirs = local[name], stock(manager, name)
    shots = 5 if name.startswith("mmlu") else 0
    # the local file has no such column
    label = [f"{row['activity_label']}: " if name == "hellaswag" else "" for row in HUB[name]]
    for number, (mine, other) in enumerate(zip(ours.eval_docs, theirs.eval_docs)):
        expected = requests(theirs, other, shots)
        assert [
            (label[number] + found[0], *found[1:]) for found in requests(ours, mine, shots)
        ] == expected
        assert expected[0]
        assert ours.doc_to_target(mine) == theirs.doc_to_target(other)
        # any values, the same for both
        answers = [(-float(len(pair[-1])), False) for pair in expected]
        answers = answers if ours.OUTPUT_TYPE == "multiple_choice" else answers[:1]
        answers = [answers[0][0]] if ours.OUTPUT_TYPE == "loglikelihood_rolling" else answers
        metrics = theirs.process_results(other, answers)
        assert ours.process_results(mine, answers) == (
            pytest.approx(metrics) if name == "truthfulqa_mc2" else metrics
        )
    assert len(theirs.eval_docs) == 2 and len(ours.eval_docs) == (8 if name == "winogrande" else 2)
    assert ours.aggregation().keys() == theirs.aggregation().keys()
    assert ours.VERSION == theirs.VERSION


def test_one_name_runs_every_task_with_the_shots_of_the_published_table(manager, local) -> None:
    mmlu = {f"mmlu_{subject}" for subject in SUBJECTS}
    assert len(mmlu) == 57 and set(local) == {*HUB, *mmlu}
    shots = {
        name: task.config.num_fewshot for name, task in local.items() if task.config.num_fewshot
    }
    assert all(
        local[f"mmlu_{subject}"].eval_docs["subject"] == [subject] * 2 for subject in SUBJECTS
    )
    assert shots == dict.fromkeys([*mmlu, "winogrande"], 5)
    assert set(GROUPS) == {
        path.stem
        for path in TASKS.glob("*_local.yaml")
        if "_likelihood_template_yaml" in path.read_text()
    }


def test_no_question_is_among_its_own_shots(local) -> None:
    task = local["winogrande"]
    for seed in range(20):
        task.set_fewshot_seed(seed)
        for doc in task.eval_docs:
            context = requests(task, doc, 5)[0][0]
            whole = f"{task.doc_to_choice(doc)[int(doc['answer']) - 1]} {task.doc_to_target(doc)}"
            assert context.count("\n\n") == 5 and whole not in context


def test_the_mass_of_true_answers_is_finite_however_unlikely_they_are(local) -> None:
    task = local["truthfulqa_mc2"]
    doc = task.eval_docs[1]  # two true answers, two false ones
    unlikely = [(-2000.0 - math.log(weight), False) for weight in (1, 2, 4, 4)]
    assert task.process_results(doc, unlikely)["acc"] == pytest.approx(
        (1 + 1 / 2) / (1 + 1 / 2 + 1 / 4 + 1 / 4)
    )


def test_missing_data_is_named(manager, monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("LLADA_PLUGINS_DATA", raising=False)
    with pytest.raises(ValueError, match="set LLADA_PLUGINS_DATA to their folder"):
        tasks_of(manager, "piqa_local")
    monkeypatch.setenv("LLADA_PLUGINS_DATA", str(tmp_path))
    with pytest.raises(
        FileNotFoundError,
        match=r"dev.jsonl: no such file; .* must hold piqa/dev.jsonl, piqa/dev-labels.lst",
    ):
        tasks_of(manager, "piqa_local")
    (tmp_path / "mmlu").mkdir()
    for split in ("test", "dev"):
        row = {"subject": "cooking", "question": "", "choices": [], "answer": "A"}
        (tmp_path / "mmlu" / f"mmlu_{split}.jsonl").write_text(json.dumps(row))
    with pytest.raises(
        ValueError, match=r"no row has the subject 'abstract_algebra'; these do: \['cooking'\]"
    ):
        tasks_of(manager, "mmlu_local")


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ('{"query": "q", "choices": ["a"], "gold": 0}\n\n{"query"', "easy.jsonl:3: not JSON"),
        ('{"question": "q"}', "easy.jsonl:1: no such row.*expected: ARC as {query, choices, gold}"),
        ('{"query": "q", "choices": ["a"], "gold": 11}', "easy.jsonl:1: no such row"),
        ("[1]", "easy.jsonl:1: no such row"),
    ],
)
def test_a_row_of_another_form_is_named_by_its_line(
    manager, monkeypatch, tmp_path, lines, told
) -> None:
    monkeypatch.setenv("LLADA_PLUGINS_DATA", str(tmp_path))
    (tmp_path / "arc").mkdir()
    for name in ("easy", "challenge"):
        (tmp_path / "arc" / f"arc_{name}.jsonl").write_text(lines)
    with pytest.raises(ValueError, match=told) as caught:
        tasks_of(manager, "arc_local")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the public data sets as whole files")
@pytest.mark.parametrize(
    ("group", "sizes"),
    [
        ("arc_local", {"arc_easy": 2376, "arc_challenge": 1172}),
        ("hellaswag_local", {"hellaswag": 2000}),
        ("piqa_local", {"piqa": 1838}),
        ("winogrande_local", {"winogrande": 1267}),
        ("openbookqa_local", {"openbookqa": 500}),
        ("lambada_local", {"lambada_openai": 5153}),
        ("truthfulqa_local", {"truthfulqa_mc1": 817, "truthfulqa_mc2": 817}),
        ("wikitext_local", {"wikitext": 60}),
    ],
)
def test_public_files_are_read_whole(manager, monkeypatch, group, sizes) -> None:
    monkeypatch.setenv("LLADA_PLUGINS_DATA", str(DATA))
    tasks = tasks_of(manager, group)
    assert {name: len(task.eval_docs) for name, task in tasks.items()} == sizes
    for name, task in tasks.items():
        docs = list(task.eval_docs)
        if task.OUTPUT_TYPE == "multiple_choice" and name != "winogrande":
            assert all(
                0 <= int(task.doc_to_target(doc)) < len(task.doc_to_choice(doc)) for doc in docs
            )
        lines = {
            "winogrande": "winogrande/winogrande.jsonl",
            "lambada_openai": "lambada/lambada_openai.jsonl",
        }.get(name)
        rows = [json.loads(line) for line in (DATA / lines).open(encoding="utf-8")] if lines else []
        for row, doc in zip(rows[:500], docs):
            if name == "winogrande":
                assert task.doc_to_choice(doc) == row["context_options"]
                assert task.doc_to_target(doc) == row["continuation"]
                assert task.doc_to_text(doc) == row["gold"]
            else:
                assert (task.doc_to_text(doc), task.doc_to_target(doc)) == (
                    row["context"],
                    " " + row["continuation"],
                )
    if group == "wikitext_local":
        whole = "\n".join(doc["page"] for doc in tasks["wikitext"].eval_docs)
        assert (
            whole.strip() == (DATA / "wikitext2" / "valid.txt").read_text(encoding="utf-8").strip()
        )


def test_perplexities_are_the_engines_log_likelihoods_over_words_and_bytes(
    manager, folder, tiny_checkpoint, monkeypatch
) -> None:
    monkeypatch.setenv("LLADA_PLUGINS_DATA", str(folder))
    model = LLaDA(str(tiny_checkpoint), device="cpu", mc_num=4, max_length=40, batch_size=8)
    found = evaluate(model, get_task_dict(["wikitext_local"], manager), bootstrap_iters=0)[
        "results"
    ]["wikitext"]
    task = tasks_of(manager, "wikitext_local")["wikitext"]
    total = bound = 0.0
    for doc in task.eval_docs:
        tokens = [
            model.tokenizer.bos_token_id,
            *model.tokenizer.encode(task.doc_to_target(doc), add_special_tokens=False),
        ]
        # 39 tokens a window and at least one before it
        ends = [min(start + 39, len(tokens)) for start in range(1, len(tokens), 39)]
        windows = [
            (tokens[max(end - 40, 0) : start], tokens[start:end])
            for start, end in zip(range(1, len(tokens), 39), ends)
        ]
        assert len(windows) >= 2 and all(len(context) >= 1 for context, _ in windows)
        total += sum(value.value for _, value in model.engine.log_likelihood(windows))
        bound += likelihood_error(model.engine.model, len(tokens) - 1)
    words, size = (
        sum(map(count, PAGES))
        for count in (lambda page: len(re.split(r"\s+", page)), lambda page: len(page.encode()))
    )
    assert found["word_perplexity,none"] == pytest.approx(
        math.exp(-total / words), rel=math.expm1(bound / words)
    )
    assert found["byte_perplexity,none"] == pytest.approx(
        math.exp(-total / size), rel=math.expm1(bound / size)
    )
    assert found["bits_per_byte,none"] == pytest.approx(
        -total / size / math.log(2), abs=bound / size / math.log(2)
    )


@pytest.mark.slow
def test_the_stock_command_gives_finite_metrics_for_every_task(
    folder, tiny_checkpoint, tmp_path
) -> None:
    checkpoint = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    # some answers have 400 bytes
    (checkpoint / "config.json").write_text(json.dumps({**config, "max_sequence_length": 640}))
    data = DATA if DATA.is_dir() else folder
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "lm_eval",
            "--model",
            "llada",
            "--model_args",
            f"pretrained={checkpoint},mc_num=1",
            "--batch_size",
            "32",
            "--tasks",
            "llada_base_local",
            "--include_path",
            str(TASKS),
            "--limit",
            "2",
            "--device",
            "cpu",
            "--output_path",
            str(tmp_path),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        env=environment(HF_HOME=str(tmp_path / "hf"), LLADA_PLUGINS_DATA=str(data)),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(next(tmp_path.rglob("results_*.json")).read_text())
    results = {
        name: {
            key.split(",")[0]: value
            for key, value in values.items()
            if key.endswith(",none") and "stderr" not in key
        }
        for name, values in report["results"].items()
    }
    results = {name: values for name, values in results.items() if values}
    assert set(results) == {*HUB, *(f"mmlu_{subject}" for subject in SUBJECTS), "mmlu_local"}
    expected = {
        **dict.fromkeys(
            ("arc_easy", "arc_challenge", "hellaswag", "piqa", "openbookqa"), {"acc", "acc_norm"}
        ),
        "lambada_openai": {"acc", "perplexity"},
        "wikitext": {"word_perplexity", "byte_perplexity", "bits_per_byte"},
    }
    for name, values in results.items():
        assert set(values) == expected.get(name, {"acc"}) and all(
            map(math.isfinite, values.values())
        ), (name, values)
    assert {found["effective"] for found in report["n-samples"].values()} == {2}


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the files of ARC and PIQA")
def test_the_shipped_opencompass_config_scores_by_perplexity_and_by_log_likelihood(
    tmp_path,
) -> None:
    pytest.importorskip("opencompass")
    files = {
        **{
            f"ARC/ARC-c/ARC-Challenge-{split}.jsonl": f"arc/ARC-Challenge-{split}.jsonl"
            for split in ("Dev", "Test")
        },
        **{
            f"piqa/{split}{end}": f"piqa/dev{end}"
            for split in ("train", "dev")
            for end in (".jsonl", "-labels.lst")
        },
    }
    for name, source in files.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).symlink_to(DATA / source)
    (tmp_path / "data" / "winogrande").mkdir()
    (tmp_path / "data" / "winogrande" / "dev.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in HUB["winogrande"])
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "opencompass.cli.main",
            str(ROOT / "configs" / "eval_llada_base_local.py"),
            "--debug",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        env=environment(PYTHONPATH=str(ROOT), COMPASS_DATA_CACHE=str(tmp_path), LLADA_LIMIT="2"),
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = list(csv.DictReader(next(tmp_path.rglob("summary_*.csv")).open()))
    files = {
        path.stem: json.loads(path.read_text()) for path in tmp_path.rglob("predictions/*/*.json")
    }
    labels = {
        file: [
            found
            for row in found.values()
            for name, found in row.items()
            if name.startswith("label: ")
        ]
        for file, found in files.items()
    }
    assert {file: len(found) for file, found in labels.items()} == {
        "ARC-c-first2": 8,
        "piqa-first2": 4,
        "winogrande-first2": 4,
    }
    assert all(
        label["stderr"] >= 0 and label["num_forwards"] > 0
        for found in labels.values()
        for label in found
    )
    assert [(row["dataset"], row["mode"]) for row in rows] == [
        ("ARC-c-first2", "ppl"),
        ("piqa-first2", "ppl"),
        ("winogrande-first2", "ll"),
    ]
    # OpenCompass writes "-" for a failed task
    assert {float(row["LLaDA-tiny-mc_num=4"]) for row in rows} <= {0.0, 50.0, 100.0}
