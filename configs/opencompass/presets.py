"""The sampler settings and scores that LLaDA's authors published for OpenCompass; a
fragment for read_base, data only.

reproduces  ML-GSAI/LLaDA EVAL.md (Base at 256, Instruct, block-diffusion rows) and the
            LLaDA 1.5 report; all greedy, one token a step
command     opencompass configs/eval_llada_published.py
cost        see there
published   `published`: percent, in the authors' OpenCompass (a fork of 0.4.2). Their
            Base runs of GSM8K and HumanEval used data set configs of that fork, which
            stock OpenCompass does not have
ours        not run
"""

whole = dict(gen_length=512, steps=512, block_length=512)
gated = dict(confidence_eos_eot_inf=True)  # EOS and EoT are kept last
base = dict(gen_length=256, steps=256, block_length=256)

presets = [
    dict(model="LLaDA-8B-Instruct", task="gsm8k", published=68.8, sampler=dict(**whole, **gated)),
    dict(
        model="LLaDA-8B-Instruct",
        task="gsm8k",
        published=78.9,
        sampler=dict(gen_length=256, steps=256, block_length=8),
    ),
    dict(model="LLaDA-8B-Instruct", task="math", published=29.6, sampler=dict(**whole, **gated)),
    dict(
        model="LLaDA-8B-Instruct",
        task="math",
        published=42.7,
        sampler=dict(gen_length=512, steps=512, block_length=64),
    ),
    dict(
        model="LLaDA-8B-Instruct",
        task="humaneval",
        published=47.0,
        sampler=dict(**whole, logits_eos_inf=True),
    ),
    dict(model="LLaDA-8B-Instruct", task="mbpp", published=39.6, sampler=dict(**base, **gated)),
    dict(
        model="LLaDA-1.5",
        task="gsm8k",
        published=83.6,
        sampler=dict(gen_length=256, steps=256, block_length=16, **gated),
    ),
    dict(
        model="LLaDA-1.5",
        task="math",
        published=42.3,
        sampler=dict(gen_length=1024, steps=1024, block_length=128, **gated),
    ),
    dict(
        model="LLaDA-1.5",
        task="humaneval",
        published=51.2,
        sampler=dict(gen_length=512, steps=512, block_length=32, **gated),
    ),
    dict(
        model="LLaDA-1.5",
        task="mbpp",
        published=42.6,
        sampler=dict(gen_length=512, steps=512, block_length=32, **gated),
    ),
    dict(model="LLaDA-8B-Base", task="gsm8k", published=71.9, sampler=base),
    dict(model="LLaDA-8B-Base", task="math", published=30.7, sampler=base, stop_words=["Problem:"]),
    dict(model="LLaDA-8B-Base", task="humaneval", published=34.1, sampler=base),
    dict(model="LLaDA-8B-Base", task="mbpp", published=38.8, sampler=base, stop_words=["[DONE]"]),
]
