"""Learned remasking on 4x4 sudoku: the tiny model and its UPS head, 8 steps, nothing
varied but the confidence source.

reproduces  the comparison of RemeDi's paper (arXiv 2509.23653), not its numbers: under
            each source 2n of 16 tokens stand after step n, so forwards and mask counts
            are equal; LLaDA-tiny, which never takes a token back, is the baseline at
            the same 8 forwards
command     opencompass configs/eval_llada_ups.py
cost        about four CPU minutes, most of it OpenCompass' start of nine processes
            (--debug: one); no data, no network
published   -
ours        by make ablation, 1000 problems: ups 80.8, tps_prob 79.6, random 74.3,
            never-remask 76.0; paired, at 95 %: ups above tps_prob by 1.2 +-1.8, above
            never-remask by 4.8 +-1.9
"""

from mmengine.config import read_base

with read_base():
    from .opencompass.datasets.sudoku4 import sudoku4_datasets
    from .opencompass.models.llada_tiny import models as never_remask
    from .opencompass.models.llada_ups_tiny import models as remask

datasets = sudoku4_datasets
steps = 8
models = [dict(never_remask[0], abbr=f"LLaDA-tiny-gen_length=16-steps={steps}", steps=steps)]
models += [
    dict(
        remask[0],
        abbr=f"LLaDA-UPS-tiny-gen_length=16-steps={steps}-confidence_source={source}",
        steps=steps,
        confidence_source=source,
    )
    for source in ("ups", "tps_prob", "random")
]
work_dir = "outputs/opencompass"
