"""Routed seeds (ALA) beside the baseline: 4x4 sudoku at 16 and 8 steps, and Nim, in and
out of the training distribution, at 8 steps.

reproduces  no paper's table; the plan's question whether a router before a frozen
            backbone helps on held-out and larger Nim positions. Each pair differs in
            the router alone: the same weights, sampler and number of forwards
command     opencompass configs/eval_llada_ala.py
cost        two CPU minutes (OMP_NUM_THREADS=1 on busy cores), most of it OpenCompass'
            start of its processes; no data, no network
published   -
ours        sudoku4 100.0 at 16 steps (baseline 100.0), 78.2 at 8 (78.6); 500 problems:
            +-3.6 at 8 steps, at 95 %; by the engine. Nim: not run
"""

from mmengine.config import read_base

with read_base():
    from .opencompass.datasets.nim import nim_datasets
    from .opencompass.datasets.sudoku4 import sudoku4_datasets
    from .opencompass.models.llada_ala_tiny import models as ala
    from .opencompass.models.llada_nim import models as nim
    from .opencompass.models.llada_tiny import models as tiny

sudoku_models = [
    dict(model, abbr=f"{name}-tiny-gen_length=16-steps={steps}", steps=steps)
    for steps in (16, 8)
    for name, model in (("LLaDA", tiny[0]), ("LLaDA-ALA", ala[0]))
]
nim_models = [
    nim[0],
    dict(nim[0], type=ala[0]["type"], abbr=nim[0]["abbr"].replace("LLaDA-", "LLaDA-ALA-", 1)),
]
models = sudoku_models + nim_models
datasets = sudoku4_datasets + nim_datasets
model_dataset_combinations = [
    dict(models=sudoku_models, datasets=sudoku4_datasets),
    dict(models=nim_models, datasets=nim_datasets),
]
work_dir = "outputs/opencompass"
