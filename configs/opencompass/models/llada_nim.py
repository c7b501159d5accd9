"""The tiny Nim model shipped in the package (0.85 M parameters), one token a step; its
router: type=LLaDAALA.

command     opencompass --config-dir configs/opencompass --models llada_nim --datasets nim
cost        a second to load; runs on a CPU
published   -
ours        nim 83.5; more in configs/opencompass/datasets/nim.py
"""

from llada_plugins.opencompass_models import LLaDA

sampler = dict(gen_length=8, steps=8)
models = [
    dict(
        type=LLaDA,
        abbr="LLaDA-nim-" + "-".join(f"{option}={value}" for option, value in sampler.items()),
        path="nim",
        batch_size=64,
        run_cfg=dict(num_gpus=0),
        **sampler,
    )
]
