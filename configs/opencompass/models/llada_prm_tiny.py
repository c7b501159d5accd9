"""The tiny model shipped in the package with its process reward model (LLaDA-R3): rows
of the sudoku are blocks and steps.

command     opencompass --config-dir configs/opencompass --models llada_prm_tiny --datasets sudoku4
cost        a second to load; runs on a CPU
published   -
ours        sudoku4 75.4 (make ablation-prm); beside the other methods: configs/eval_llada_prm.py
"""

from llada_plugins.opencompass_models import LLaDAPRM

sampler = dict(gen_length=16, steps=4, block_length=4)
models = [
    dict(
        type=LLaDAPRM,
        abbr="LLaDA-PRM-tiny-" + "-".join(f"{option}={value}" for option, value in sampler.items()),
        path=None,
        method="backmask",
        backmasking_lookback=2,
        batch_size=64,
        run_cfg=dict(num_gpus=0),
        **sampler,
    )
]
