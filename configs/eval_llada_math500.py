"""MATH-500, 0-shot, with stock OpenCompass' own data set, prompt and math-verify
grading; with LLADA_PRM by LLaDA-R3's back-masking.

reproduces  the setting of LLaDA-R3 (steps 128, gen_length 512, blocks of 32,
            temperature 0.6), or LLaDA EVAL.md's MATH in blocks of 64
command     LLADA_PRETRAINED=GSAI-ML/LLaDA-8B-Instruct LLADA_PRM=DIR \\
                opencompass configs/eval_llada_math500.py
            without LLADA_PRM: plain llada;
            without LLADA_PRETRAINED: the tiny model on the first 20 rows, which only
            shows that everything works.
            LLADA_LIMIT=n: the first n rows.
            Needs math-verify: pip install 'llada-plugins[grading]'
            COMPASS_DATA_CACHE: the folder (default: here) that holds
            data/math/test_prm800k_500.jsonl, which is MATH-500's test.jsonl as it is,
            under OpenCompass' name for it:
            mkdir -p data/math && cp test.jsonl data/math/test_prm800k_500.jsonl
cost        tiny: half a minute on one CPU core; 8B: 500 rows of 128 forward passes,
            times the candidates, or of 512 without PRM
published   no table for R3; all of MATH 42.7 in blocks of 64 (authors' OpenCompass)
ours        not run. Stock grading (0.5.4) rejects 8 of the 500 references when they are
            given back as they are (\\frac43, 11\\sqrt2: macros without braces, which it
            repairs in references only); the lm-eval task math500_local accepts all
"""

from os import environ

from mmengine.config import read_base

with read_base():
    from opencompass.configs.datasets.math.math_500_gen import math_datasets

    from .opencompass.models.llada_8b_instruct import models as instruct
    from .opencompass.models.llada_tiny import models as tiny

from llada_plugins.opencompass_models import LLaDAPRM

checkpoint = environ.get("LLADA_PRETRAINED")
prm = environ.get("LLADA_PRM")
limit = environ.get("LLADA_LIMIT", "" if checkpoint else "20")
if checkpoint:
    sampler = (
        dict(gen_length=512, steps=128, block_length=32, temperature=0.6)
        if prm
        else dict(gen_length=512, steps=512, block_length=64)
    )
    sampler.update(confidence_eos_eot_inf=False)
else:
    sampler = dict(gen_length=32, steps=4, block_length=8)
datasets = math_datasets
if limit:
    datasets[0]["abbr"] = f"math-500-first{limit}"
    datasets[0]["reader_cfg"]["test_range"] = f"[:{limit}]"
name = checkpoint.rstrip("/").split("/")[-1] if checkpoint else "LLaDA-tiny"
models = [
    dict(
        (instruct if checkpoint else tiny)[0],
        path=checkpoint,
        batch_size=4,
        abbr="-".join(
            [
                name,
                *(["prm"] if prm else []),
                *(f"{option}={value}" for option, value in sampler.items()),
            ]
        ),
        **sampler,
    )
]
if prm:  # question_pattern: the PRM reads the question without chat header and instruction
    models[0].update(
        type=LLaDAPRM, prm=prm, question_pattern=r"(?:user\s+)?(.*)\nPlease reason step by step"
    )
work_dir = "outputs/opencompass"
