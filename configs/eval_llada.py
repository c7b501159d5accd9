"""The tiny shipped model on 4x4 sudoku, at one token a step and at two.

reproduces  no paper's table; one token a step solves nearly all, two tokens a step
            commit conflicting pairs together
command     opencompass configs/eval_llada.py
cost        two CPU minutes with OpenCompass' start of five processes (200 s on two busy
            cores); no data, no network
published   -
ours        100.0 at 16 steps (99.2 at least), 78.6 at 8 (+-3.6); 500 problems, at 95 %
"""

from mmengine.config import read_base

with read_base():
    from .opencompass.datasets.sudoku4 import sudoku4_datasets
    from .opencompass.models.llada_tiny import models as tiny

datasets = sudoku4_datasets
variants = [dict(gen_length=16, steps=16), dict(gen_length=16, steps=8)]
models = [
    dict(
        tiny[0],
        abbr="LLaDA-tiny-" + "-".join(f"{option}={value}" for option, value in variant.items()),
        **variant,
    )
    for variant in variants
]
work_dir = "outputs/opencompass"
