"""LLaDA-8B-Base with the options of the preset llada-8b-base/gsm8k-256.

made from the table of presets by python -m llada_plugins.presets write configs.

reproduces  ML-GSAI/LLaDA EVAL.md (b7e6c35), lm-eval through eval_llada.py; ML-GSAI/LLaDA
            EVAL.md (b7e6c35), a fork of OpenCompass 0.4.2
command     opencompass --config-dir configs/opencompass --models llada_8b_base \\
                --datasets gsm8k_gen
            (other tasks have settings of their own: configs/eval_llada_published.py)
cost        a forward a token and row; 16 GB of weights in bfloat16
published   GSM8K 70 / 71.9
ours        not run
"""

from llada_plugins.opencompass_models import LLaDA

sampler = dict(gen_length=256, steps=256, block_length=256)
models = [
    dict(
        type=LLaDA,
        abbr="LLaDA-8B-Base-" + "-".join(f"{option}={value}" for option, value in sampler.items()),
        path="GSAI-ML/LLaDA-8B-Base",
        chat=False,
        batch_size=8,
        run_cfg=dict(num_gpus=1),
        **sampler,
    )
]
