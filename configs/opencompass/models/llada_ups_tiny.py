"""The tiny model shipped in the package with its UPS head (learned remasking): 8 steps,
after step n the 2n best of 16 tokens stand.

command     opencompass --config-dir configs/opencompass --models llada_ups_tiny --datasets sudoku4
cost        a second to load; runs on a CPU
published   -
ours        sudoku4 80.8 (1000 problems, by make ablation); beside the other sources:
            configs/eval_llada_ups.py
"""

from llada_plugins.opencompass_models import LLaDAUPS

sampler = dict(gen_length=16, steps=8, confidence_source="ups")
models = [
    dict(
        type=LLaDAUPS,
        abbr="LLaDA-UPS-tiny-" + "-".join(f"{option}={value}" for option, value in sampler.items()),
        path=None,
        revise=True,
        batch_size=64,
        run_cfg=dict(num_gpus=0),
        **sampler,
    )
]
