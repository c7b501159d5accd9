"""LLaDA-8B-Instruct with its authors' setting for GSM8K, MATH and ARC-C: 512 tokens,
512 steps, one block, EOS and EoT kept last.

command     opencompass --config-dir configs/opencompass --models llada_8b_instruct \\
                --datasets gsm8k_gen
            (other tasks have settings of their own: configs/eval_llada_published.py)
cost        16 GB of weights in bfloat16, one GPU
published   configs/opencompass/presets.py, row LLaDA-8B-Instruct gsm8k
ours        not run
"""

from llada_plugins.opencompass_models import LLaDA

sampler = dict(gen_length=512, steps=512, block_length=512, confidence_eos_eot_inf=True)
models = [
    dict(
        type=LLaDA,
        abbr="LLaDA-8B-Instruct-"
        + "-".join(f"{option}={value}" for option, value in sampler.items()),
        path="GSAI-ML/LLaDA-8B-Instruct",
        chat=True,
        batch_size=8,
        run_cfg=dict(num_gpus=1),
        **sampler,
    )
]
