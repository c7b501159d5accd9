"""LLaDA 1.5 with its authors' setting for GSM8K: 256 tokens, 256 steps, blocks of 16,
EOS and EoT kept last.

command     opencompass --config-dir configs/opencompass --models llada_1_5 --datasets gsm8k_gen
            (other tasks have settings of their own: configs/eval_llada_published.py)
cost        16 GB of weights in bfloat16, one GPU
published   configs/opencompass/presets.py, row LLaDA-1.5 gsm8k
ours        not run
"""

from llada_plugins.opencompass_models import LLaDA

sampler = dict(gen_length=256, steps=256, block_length=16, confidence_eos_eot_inf=True)
models = [
    dict(
        type=LLaDA,
        abbr="LLaDA-1.5-" + "-".join(f"{option}={value}" for option, value in sampler.items()),
        path="GSAI-ML/LLaDA-1.5",
        chat=True,
        batch_size=8,
        run_cfg=dict(num_gpus=1),
        **sampler,
    )
]
