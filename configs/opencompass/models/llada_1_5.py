"""LLaDA-1.5 with the options of the preset llada-1.5/gsm8k.

made from the table of presets by python -m llada_plugins.presets write configs.

reproduces  ML-GSAI/LLaDA EVAL.md (b7e6c35), a fork of OpenCompass 0.4.2; ML-GSAI/LLaDA EVAL.md
            (b7e6c35), the authors' internal toolkit
command     opencompass --config-dir configs/opencompass --models llada_1_5 \\
                --datasets gsm8k_gen
            (other tasks have settings of their own: configs/eval_llada_published.py)
cost        a forward a token and row; 16 GB of weights in bfloat16
published   GSM8K 83.6 / 83.8
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
