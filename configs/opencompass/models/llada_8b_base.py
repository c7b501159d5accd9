"""LLaDA-8B-Base as its authors ran OpenCompass: 256 tokens, 256 steps, one block. Turns
are joined by newlines, no chat template.

command     opencompass --config-dir configs/opencompass --models llada_8b_base --datasets gsm8k_gen
            (other tasks have settings of their own: configs/eval_llada_published.py)
cost        16 GB of weights in bfloat16, one GPU
published   configs/opencompass/presets.py, row LLaDA-8B-Base gsm8k
ours        not run
"""

from llada_plugins.opencompass_models import LLaDA

sampler = dict(gen_length=256, steps=256, block_length=256)
models = [
    dict(
        type=LLaDA,
        abbr="LLaDA-8B-Base-" + "-".join(f"{option}={value}" for option, value in sampler.items()),
        path="GSAI-ML/LLaDA-8B-Base",
        batch_size=8,
        run_cfg=dict(num_gpus=1),
        **sampler,
    )
]
