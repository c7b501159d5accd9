"""Process-reward review (LLaDA-R3) on 4x4 sudoku: greedy blocks, candidates for every
block, back-masking, window refinement.

reproduces  no paper's table: the three samplers of LLaDA-R3 at comparable cost, on the
            tiny model and its process reward model. A row of the sudoku is a block,
            filled in one forward; nothing varies but what the reward model's verdicts
            are used for
command     opencompass configs/eval_llada_prm.py
cost        two CPU minutes (OMP_NUM_THREADS=1 on busy cores), most of it OpenCompass'
            start of its processes; no data, no network
published   -
ours        by make ablation-prm: greedy blocks 41.6 (4 forwards), vanilla 69.4 (16),
            backmask 75.4 (8.0), window 58.6 (7.8); 500 problems: +-4.3 at 95 %
"""

from mmengine.config import read_base

with read_base():
    from .opencompass.datasets.sudoku4 import sudoku4_datasets
    from .opencompass.models.llada_prm_tiny import models as prm
    from .opencompass.models.llada_tiny import models as tiny

datasets = sudoku4_datasets
reviews = {
    "vanilla": dict(method="vanilla", num_candidates_per_block=4),
    "backmask": dict(method="backmask", backmasking_lookback=2),
    "window": dict(method="window", backmasking_frequency=2, num_refinement_samples=4),
}
models = [
    dict(tiny[0], abbr="LLaDA-tiny-gen_length=16-steps=4-block_length=4", steps=4, block_length=4)
]
models += [
    dict(
        prm[0],
        abbr=f"LLaDA-PRM-tiny-gen_length=16-steps=4-block_length=4-method={method}",
        **options,
    )
    for method, options in reviews.items()
]
work_dir = "outputs/opencompass"
