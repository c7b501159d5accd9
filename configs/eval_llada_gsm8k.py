"""GSM8K, 4-shot, in blocks of 8 (semi-autoregressive), with stock OpenCompass' own data
set, prompts and grading.

reproduces  ML-GSAI/LLaDA EVAL.md, block-diffusion row of LLaDA-8B-Instruct
command     LLADA_PRETRAINED=GSAI-ML/LLaDA-8B-Instruct opencompass configs/eval_llada_gsm8k.py
            without LLADA_PRETRAINED: the tiny model on the first 20 rows, 0-shot
            because its bytes exceed its context with examples; it can only show that
            everything works.
            LLADA_LIMIT=n: the first n rows.
            COMPASS_DATA_CACHE: the folder that holds data/gsm8k/{train,test}.jsonl
            (default: here)
cost        tiny: half a minute on one CPU core; 8B: 1319 rows of 256 forward passes on one GPU
published   78.9 (authors' OpenCompass)
ours        not run
"""

from os import environ

from mmengine.config import read_base

with read_base():
    from opencompass.configs.datasets.gsm8k.gsm8k_0shot_v2_gen_a58960 import (
        gsm8k_datasets as zero_shot,
    )
    from opencompass.configs.datasets.gsm8k.gsm8k_gen_1d7fe4 import gsm8k_datasets

    from .opencompass.models.llada_8b_instruct import models as instruct
    from .opencompass.models.llada_tiny import models as tiny

checkpoint = environ.get("LLADA_PRETRAINED")
limit = environ.get("LLADA_LIMIT", "" if checkpoint else "20")
sampler = dict(block_length=8)
sampler.update(
    dict(gen_length=256, steps=256, confidence_eos_eot_inf=False)
    if checkpoint
    else dict(gen_length=32, steps=4)
)
datasets = gsm8k_datasets if checkpoint else zero_shot
if limit:
    datasets[0]["abbr"] = f"gsm8k-first{limit}" if checkpoint else f"gsm8k-0shot-first{limit}"
    datasets[0]["reader_cfg"]["test_range"] = f"[:{limit}]"
name = checkpoint.rstrip("/").split("/")[-1] if checkpoint else "LLaDA-tiny"
models = [
    dict(
        (instruct if checkpoint else tiny)[0],
        path=checkpoint,
        batch_size=4,
        abbr=name + "-" + "-".join(f"{option}={value}" for option, value in sampler.items()),
        **sampler,
    )
]
work_dir = "outputs/opencompass"
