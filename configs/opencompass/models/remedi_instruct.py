"""RemeDi-Instruct with its own policy stream: blocks of 32, 32 steps a block, at most
1024 tokens, ended by the block that holds EOS.

Two deviations from the authors' script: it ranks by the raw token logit although the
paper ranks by the policy stream (here `ups`; confidence_source='tps_logit' is the
script's), and it freezes the keys and values of prompt and finished blocks, which are
recomputed here and so see the current block. Scores need not agree.

command     opencompass --config-dir configs/opencompass --models remedi_instruct \\
                --datasets gsm8k_gen
cost        18 GB of weights in bfloat16, one GPU, up to 1024 forwards an answer
published   arXiv 2509.23653 states GSM8K 89.1 for its final model, after reinforcement
            learning; not for this one under these options
ours        not run
"""

from llada_plugins.opencompass_models import LLaDAUPS

sampler = dict(
    gen_length=1024,
    steps=1024,
    block_length=32,
    sampling_method="semi_ar_origin",
    confidence_source="ups",
)
models = [
    dict(
        type=LLaDAUPS,
        abbr="RemeDi-Instruct-"
        + "-".join(f"{option}={value}" for option, value in sampler.items()),
        path="maple-research-lab/RemeDi-Instruct",
        chat=True,
        revise=True,
        batch_size=8,
        run_cfg=dict(num_gpus=1),
        **sampler,
    )
]
