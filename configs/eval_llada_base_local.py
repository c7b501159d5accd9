"""Base models by likelihood: ARC-Challenge and PIQA as perplexities, WinoGrande as
log-likelihoods, with stock OpenCompass' own data sets.

reproduces  no published number: LLaDA's likelihood tasks were run in lm-eval
            (configs/lmeval/llada_base_local.yaml), with other prompts
command     LLADA_PRETRAINED=GSAI-ML/LLaDA-8B-Base opencompass configs/eval_llada_base_local.py
            without LLADA_PRETRAINED: the tiny model, 4 samples a choice, on the first 3
            rows; it can only show that everything works.
            LLADA_LIMIT=n: the first n rows.
            COMPASS_DATA_CACHE: the folder that holds (default: here)
            data/ARC/ARC-c/ARC-Challenge-{Dev,Test}.jsonl,
            data/piqa/{train,dev}{.jsonl,-labels.lst}, data/winogrande/dev.jsonl
            Prediction files hold the standard error of every likelihood.
cost        tiny: a minute on one CPU core; 8B: 295 ARC rows x 4, 1838 PIQA rows x 2,
            1267 WinoGrande rows x 2, each at most 128 samples
published   -
ours        not run
"""

from os import environ

from mmengine.config import read_base

from llada_plugins.opencompass_inferencers import LLInferencer, PPLInferencer

with read_base():
    from opencompass.configs.datasets.ARC_c.ARC_c_ppl_a450bd import ARC_c_datasets
    from opencompass.configs.datasets.piqa.piqa_ppl_1cf9f0 import piqa_datasets
    from opencompass.configs.datasets.winogrande.winogrande_ll_c5cf57 import winogrande_datasets

    from .opencompass.models.llada_8b_base import models as base
    from .opencompass.models.llada_tiny import models as tiny

checkpoint = environ.get("LLADA_PRETRAINED")
limit = environ.get("LLADA_LIMIT", "" if checkpoint else "3")
mc_num = 128 if checkpoint else 4
for dataset in [*ARC_c_datasets, *piqa_datasets]:
    dataset["infer_cfg"]["inferencer"]["type"] = PPLInferencer
for dataset in winogrande_datasets:
    dataset["infer_cfg"]["inferencer"]["type"] = LLInferencer
datasets = [*ARC_c_datasets, *piqa_datasets, *winogrande_datasets]
if limit:
    for dataset in datasets:
        dataset["abbr"] += f"-first{limit}"
        dataset["reader_cfg"]["test_range"] = f"[:{limit}]"
name = checkpoint.rstrip("/").split("/")[-1] if checkpoint else "LLaDA-tiny"
models = [
    dict(
        (base if checkpoint else tiny)[0],
        path=checkpoint,
        abbr=f"{name}-mc_num={mc_num}",
        mc_num=mc_num,
    )
]
work_dir = "outputs/opencompass"
