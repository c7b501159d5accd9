"""Tasks with the settings that a checkpoint's authors published for them.

reproduces  the rows of configs/opencompass/presets.py
command     LLADA_MODEL=LLaDA-8B-Instruct opencompass configs/eval_llada_published.py
            LLADA_PRESET=NAME: one preset (python -m llada_plugins.presets lists them).
            LLADA_MODEL: all presets of a checkpoint that are reported of OpenCompass, or
            all where none is: LLaDA-8B-Instruct (default), LLaDA-8B-Base, LLaDA-1.5,
            Dream-v0-Base-7B, iLLaDA-8B-Base, …
            LLADA_TASKS=gsm8k,mbpp: of these only (default: gsm8k,math,humaneval,mbpp);
            LLADA_PRETRAINED: where the checkpoint is (default: the hub's);
            LLADA_GPUS=0: on the CPU; LLADA_LIMIT=n: the first n rows of every data set;
            LLADA_WORKERS=n: on n GPUs at once (splits stay the same, so a run may be
            resumed with another n).
            COMPASS_DATA_CACHE: the folder that holds OpenCompass' data/ (default: here)
cost        one forward pass a token and row: for Instruct 13,302 rows of 256 or 512
            tokens, 10,000 of them MATH, which runs twice
published   presets.py, `published`
ours        not run; python -m llada_plugins.check WORK_DIR holds a run against it
"""

from os import environ

from mmengine.config import read_base

with read_base():
    from .opencompass.datasets.published import datasets_of
    from .opencompass.infer import infer
    from .opencompass.presets import presets

from llada_plugins.opencompass_models import LLaDA

checkpoint = environ.get("LLADA_MODEL", "LLaDA-8B-Instruct")
tasks = environ.get("LLADA_TASKS", "gsm8k,math,humaneval,mbpp").split(",")
workers = int(environ.get("LLADA_WORKERS", "1"))
limit = environ.get("LLADA_LIMIT", "")
place = environ.get("LLADA_PRETRAINED", "").rstrip("/")
if "LLADA_PRESET" in environ:
    rows = [row for row in presets if row["preset"] == environ["LLADA_PRESET"]]
    asked = f"LLADA_PRESET={environ['LLADA_PRESET']}"
else:
    rows = [
        row
        for row in presets
        if row["model"] == checkpoint and row["task"] in tasks and row["usual"]
    ]
    asked = f"LLADA_MODEL={checkpoint}, LLADA_TASKS={','.join(tasks)}"
if not rows:
    raise ValueError(f"no published setting for {asked}: see configs/opencompass/presets.py")
models = [
    dict(
        type=LLaDA,
        abbr="-".join([place.split("/")[-1] or row["model"], row["preset"].split("/")[1]]),
        preset=row["preset"],
        path=place or None,
        batch_size=8,
        run_cfg=dict(num_gpus=int(environ.get("LLADA_GPUS", "1"))),
    )
    for row in rows
]
by_first = {}  # data sets of different tasks may be the same
for row in rows:
    for dataset in datasets_of[row["data"]]:
        if limit and "test_range" not in dataset["reader_cfg"]:
            dataset["abbr"] = f"{dataset['abbr']}-first{limit}"
            dataset["reader_cfg"]["test_range"] = f"[:{limit}]"
    by_first[datasets_of[row["data"]][0]["abbr"]] = datasets_of[row["data"]]
datasets = [dataset for several in by_first.values() for dataset in several]
model_dataset_combinations = [
    dict(models=[model], datasets=datasets_of[row["data"]]) for row, model in zip(rows, models)
]
infer["partitioner"].update(num_worker=workers, num_split=8)
infer["runner"].update(max_num_workers=workers)
work_dir = "outputs/opencompass"
del datasets_of, by_first, presets, rows, row, dataset  # OpenCompass files what is left
