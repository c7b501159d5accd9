"""Every task with the sampler settings that a checkpoint's authors published for it:
GSM8K, MATH, HumanEval, MBPP, for one checkpoint.

reproduces  the rows of configs/opencompass/presets.py: ML-GSAI/LLaDA EVAL.md, the LLaDA
            1.5 report, Dream's and iLLaDA's
command     LLADA_MODEL=LLaDA-8B-Instruct opencompass configs/eval_llada_published.py
            LLADA_MODEL: LLaDA-8B-Instruct (default), LLaDA-8B-Base, LLaDA-1.5,
            Dream-v0-Base-7B, Dream-v0-Instruct-7B or iLLaDA-8B-Base;
            LLADA_TASKS=gsm8k,mbpp: these only;
            LLADA_PRETRAINED: where the checkpoint is (default: the hub's);
            LLADA_WORKERS=n: on n GPUs at once (splits stay the same, so a run may be
            resumed with another n).
            COMPASS_DATA_CACHE: the folder that holds OpenCompass' data/ (default: here)
cost        one forward pass a token and row: for Instruct 13,302 rows of 256 or 512
            tokens, 10,000 of them MATH, which runs twice
published   presets.py, `published`
ours        not run
"""

from os import environ

from mmengine.config import read_base

with read_base():
    from opencompass.configs.datasets.gsm8k.gsm8k_gen_1d7fe4 import gsm8k_datasets as gsm8k
    from opencompass.configs.datasets.humaneval.humaneval_gen_8e312c import (
        humaneval_datasets as humaneval,
    )
    from opencompass.configs.datasets.math.math_0shot_gen_11c4b5 import math_datasets as math
    from opencompass.configs.datasets.mbpp.mbpp_gen_830460 import mbpp_datasets as mbpp

    from .opencompass.infer import infer
    from .opencompass.presets import checkpoints, presets

from llada_plugins.opencompass_models import LLaDA

checkpoint = environ.get("LLADA_MODEL", "LLaDA-8B-Instruct")
tasks = environ.get("LLADA_TASKS", "gsm8k,math,humaneval,mbpp").split(",")
workers = int(environ.get("LLADA_WORKERS", "1"))
by_task = dict(gsm8k=gsm8k, math=math, humaneval=humaneval, mbpp=mbpp)
rows = [row for row in presets if row["model"] == checkpoint and row["task"] in tasks]
if not rows:
    raise ValueError(
        f"no published setting for LLADA_MODEL={checkpoint}, LLADA_TASKS={','.join(tasks)}: "
        "see configs/opencompass/presets.py"
    )
own = {"path": environ["LLADA_PRETRAINED"]} if "LLADA_PRETRAINED" in environ else {}
models = [
    dict(
        type=LLaDA,
        abbr="-".join(
            [
                checkpoint,
                row["task"],
                *(f"{option}={value}" for option, value in row["sampler"].items()),
            ]
        ),
        stop_words=row.get("stop_words", []),
        batch_size=8,
        run_cfg=dict(num_gpus=1),
        **{**checkpoints[checkpoint], **own},
        **row["sampler"],
    )
    for row in rows
]
datasets = [
    dataset for task in dict.fromkeys(row["task"] for row in rows) for dataset in by_task[task]
]
model_dataset_combinations = [
    dict(models=[model], datasets=by_task[row["task"]]) for row, model in zip(rows, models)
]
infer["partitioner"].update(num_worker=workers, num_split=8)
infer["runner"].update(max_num_workers=workers)
work_dir = "outputs/opencompass"
