"""The sampler settings and scores that authors published for their checkpoints; a
fragment for read_base, data only.

reproduces  LLaDA: ML-GSAI/LLaDA EVAL.md (Base at 256, Instruct, block-diffusion rows) and
            the LLaDA 1.5 report; all greedy, one token a step.
            Dream: HKUNLP/Dream eval/ (Base) and dllm examples/dream/eval.sh (Instruct),
            both in lm-eval, whose prompts are others (configs/lmeval_published has those).
            iLLaDA: arXiv 2606.25331 (Base), which states no settings: LLaDA-8B-Base's
command     opencompass configs/eval_llada_published.py
cost        see there
published   `published`: percent; LLaDA's in its authors' OpenCompass (a fork of 0.4.2). Their
            Base runs of GSM8K and HumanEval used data set configs of that fork, which
            stock OpenCompass does not have
ours        not run
"""

whole = dict(gen_length=512, steps=512, block_length=512)
gated = dict(confidence_eos_eot_inf=True)  # EOS and EoT are kept last
base = dict(gen_length=256, steps=256, block_length=256)
# Dream's sampler at `alg=entropy`
dream = dict(schedule="dream", confidence_of="filtered", confidence_source="entropy")
dream_base = dict(**dream, top_p=0.95)
dream_instruct = dict(**dream, top_p=0.9, temperature=0.1)

# where each checkpoint is on the hub, and what its entry has beside the sampler
checkpoints = {
    "LLaDA-8B-Instruct": dict(path="GSAI-ML/LLaDA-8B-Instruct", chat=True),
    "LLaDA-8B-Base": dict(path="GSAI-ML/LLaDA-8B-Base", chat=False),
    "LLaDA-1.5": dict(path="GSAI-ML/LLaDA-1.5", chat=True),
    "Dream-v0-Base-7B": dict(path="Dream-org/Dream-v0-Base-7B", chat=False, add_bos_token=True),
    "Dream-v0-Instruct-7B": dict(path="Dream-org/Dream-v0-Instruct-7B", chat=True),
    "iLLaDA-8B-Base": dict(path="GSAI-ML/iLLaDA-8B-Base", chat=False),
}

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
    dict(
        model="Dream-v0-Base-7B",
        task="gsm8k",
        published=77.2,
        sampler=dict(gen_length=256, steps=256, **dream_base),
    ),
    dict(
        model="Dream-v0-Base-7B",
        task="math",
        published=39.6,
        sampler=dict(gen_length=512, steps=512, **dream_base),
        stop_words=["Problem:"],
    ),
    dict(
        model="Dream-v0-Base-7B",
        task="humaneval",
        published=57.9,
        sampler=dict(gen_length=512, steps=512, temperature=0.2, **dream_base),
    ),
    dict(
        model="Dream-v0-Base-7B",
        task="mbpp",
        published=56.2,
        sampler=dict(gen_length=512, steps=512, temperature=0.2, **dream_base),
        stop_words=["[DONE]"],
    ),
    dict(
        model="Dream-v0-Instruct-7B",
        task="gsm8k",
        published=81.0,
        sampler=dict(gen_length=256, steps=256, **dream_instruct),
    ),
    dict(
        model="Dream-v0-Instruct-7B",
        task="math",
        published=39.2,
        sampler=dict(gen_length=512, steps=512, **dream_instruct),
    ),
    dict(
        model="Dream-v0-Instruct-7B",
        task="humaneval",
        published=55.5,
        sampler=dict(gen_length=768, steps=768, **dream_instruct),
    ),
    dict(
        model="Dream-v0-Instruct-7B",
        task="mbpp",
        published=58.8,
        sampler=dict(gen_length=1024, steps=1024, **dream_instruct),
    ),
    dict(model="iLLaDA-8B-Base", task="gsm8k", published=81.9, sampler=base),
    dict(
        model="iLLaDA-8B-Base", task="math", published=38.4, sampler=base, stop_words=["Problem:"]
    ),
    dict(model="iLLaDA-8B-Base", task="humaneval", published=50.0, sampler=base),
    dict(model="iLLaDA-8B-Base", task="mbpp", published=57.8, sampler=base, stop_words=["[DONE]"]),
]
