"""The tiny model shipped in the package with its ALA router (prompt-conditioned seeds
for masked positions), one token a step.

command     opencompass --config-dir configs/opencompass --models llada_ala_tiny --datasets sudoku4
cost        a second to load; runs on a CPU
published   -
ours        sudoku4 100.0
"""

from llada_plugins.opencompass_models import LLaDAALA

sampler = dict(gen_length=16, steps=16)
models = [
    dict(
        type=LLaDAALA,
        abbr="LLaDA-ALA-tiny-" + "-".join(f"{option}={value}" for option, value in sampler.items()),
        path=None,
        batch_size=64,
        run_cfg=dict(num_gpus=0),
        **sampler,
    )
]
