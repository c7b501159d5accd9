"""Tests that repeat a rule on one more kind of input: make test leaves them to make test-slow.

By file, parts of their names. What each shows is shown once in make test as well, on the
input that is most unlike the others.
"""

from __future__ import annotations

SIBLINGS: dict[str, tuple[str, ...]] = {
    # the bi-tower has 31 layers, and is decoded, cached and trained in make test elsewhere
    "test_cache.py": (
        "[bi_tower-prefix",
        "guidance_has_its_own_cache[bi_tower-2",
        "[bi_tower-{",
        "[bi_tower-dual",
        "has_its_own_cache[bi_tower-None-prefix",
    ),
    "test_kept_prompt.py": ("[bi_tower",),
    "test_every_family.py": (
        "[remedi-train",
        "[a2d_qwen3-train",
        "[dream-train",
        "[llada_moe-train",
        "[remedi-keep_keys",
        "[remedi-score",
    ),
    "test_saved_class.py": (
        "[sft, LoRA, BiTower",
        "[distill",
        "[joint, BiTower",
        "[pretrain, BiTower",
    ),
    "test_frozen_dtype.py": (
        "[sft --lora-autocast",
        "[remask_sft-autocast",
        "[router_sft-autocast",
        "checkpoint[remask_sft --lora-]",
    ),
    "test_resume.py": (
        "in_an_update[all weights-4",
        "in_an_update[LoRA-1",
        "of_a_file_of_weights[all weights-6",
        "of_a_file_of_weights[LoRA-3",
        "may_change[--per_device_train_batch_size",
    ),
    "test_waits.py": (
        "kept back-random-",
        "kept back-entropy-",
        "kept back-leftmost-",
        "kept back-margin-",
        "kept back-ups_all-",
        "kept back-tps_logit-",
    ),
    "test_review.py": (
        "batch[backmasking_rule=legacy,backmasking_lookback=3",
        "batch[num_demasking_candidates=3",
        "batch[method=window,backmasking_frequency=3",
    ),
    "test_lmeval.py": ("simple_evaluate_finds",),  # reads all of lm-eval's tasks, as slow ones do
    "test_remask_sft.py": (
        "uninterrupted_one[['--joint']]",
        "uninterrupted_one[['--incorrect",
    ),
    "test_distributed.py": ("class_that_they_loaded[joint, DDP",),
    "test_estimators.py": (
        "any_number_of_rows[neighbourly",
        "at_equal_rows[neighbourly",
        "any_number_of_rows[table-9-32",
    ),
    "test_sampler.py": (
        "naive_loop[threshold-margin",
        "naive_loop[factor-ups",
        "naive_loop[factor-tps_prob",
        "naive_loop[factor-margin",
        "naive_loop[threshold_entropy-margin",
        "naive_loop[error_budget-margin",
        "whose_place[gen_length=12,factor",
        "whose_place[gen_length=12,remask_ratio",
        "whose_place[gen_length=12,threshold=1.0",
        "whose_place[gen_length=12,threshold=0.2",
        "whose_place[gen_length=12,error_budget=1.2",
        "naive_loop[threshold_entropy-ups",
        "naive_loop[threshold-tps_prob",
    ),
    "test_gpu_benchmark.py": ("step_is_replayed",),
    "test_security.py": ("network[chat]",),
    # thousands of rows each; winogrande, openbookqa and wikitext are of every kind
    "test_likelihood_tasks.py": (
        "read_whole[arc_local",
        "read_whole[hellaswag_local",
        "read_whole[lambada_local",
        "read_whole[piqa_local",
        "read_whole[truthfulqa_local",
    ),
    "test_compiling.py": ("an_adapter_takes_part",),
    "test_golden.py": (
        "passes_over_a_readme",
        "reproduced[llada2-generate_edit",
        "reproduced[llada_moe-generate",
        "reproduced[illada-generate",
        "reproduced[dream-parallel",
    ),
    "test_memory_batches.py": (
        "60-batch_tokens",
        "80-batch_tokens",
    ),
    "test_scaled_linear.py": ("change_nothing[fp8",),
    "test_quantization.py": (
        "keeps_its_accuracy[int8-",
        "keeps_its_accuracy[fp8-",
    ),
    "test_training.py": ("all_layers[hidden_states",),
    "test_benchmarks.py": ("beside_exact_decoding[nim",),
    "test_trace.py": (
        "padding_out[1-{'gen_length': 12, 'block_length': 6, 'threshold'",
        "padding_out[5-{'gen_length': 12, 'block_length': 6, 'threshold'",
    ),
    "test_hf.py": ("load_model[bi_tower",),
}


def is_sibling(file: str, name: str) -> bool:
    """Is the test of that file and name left to make test-slow?"""
    return any(part in name for part in SIBLINGS.get(file, ()))
