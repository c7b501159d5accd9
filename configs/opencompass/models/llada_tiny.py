"""The tiny model shipped in the package (0.85 M parameters, 4x4 sudoku), one token a step.

command     opencompass --config-dir configs/opencompass --models llada_tiny --datasets sudoku4
cost        a second to load; runs on a CPU
published   -
ours        sudoku4 100.0
"""

from llada_plugins.opencompass_models import LLaDA

sampler = dict(gen_length=16, steps=16)
models = [
    dict(
        type=LLaDA,
        abbr="LLaDA-tiny-" + "-".join(f"{option}={value}" for option, value in sampler.items()),
        path=None,
        batch_size=64,
        run_cfg=dict(num_gpus=0),
        **sampler,
    )
]
