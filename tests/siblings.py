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
        "[a2d_qwen3-keep_keys",
        "[dream-keep_keys",
        "[remedi-decode_in_opencompass",
        "[remedi-seed_by_a_router",
        "[remedi-quantise",
        "[remedi-save_and_load",
        "[remedi-be_judged",
        "[remedi-pad_a_batch",
        "[remedi-train",
        "[a2d_qwen3-train",
        "[dream-train",
        "[llada_moe-train",
        "[remedi-keep_keys",
        "[remedi-score",
    ),
    "test_saved_class.py": (
        "[sft, BiTower",
        "[router, BiTower",
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
        "lacks_a_part_is_damaged_too_and_deleting_it_helps[all weights-scheduler",
        "lacks_a_part_is_damaged_too_and_deleting_it_helps[all weights-trainer_state",
        "lacks_a_part_is_damaged_too_and_deleting_it_helps[LoRA-optimizer",
        "lacks_a_part_is_damaged_too_and_deleting_it_helps[LoRA-*.safetensors",
        "the_checkpoint_before[150000-optimizer",
        "in_an_update[LoRA-4",
        "may_change[--max_grad_norm",
        "in_an_update[all weights-4",
        "in_an_update[LoRA-1",
        "of_a_file_of_weights[all weights-6",
        "of_a_file_of_weights[LoRA-3",
        "may_change[--per_device_train_batch_size",
    ),
    # every source has a row with a cache and a router, and one with neither
    "test_waits.py": (
        "kept back-random-",
        "kept back-entropy-",
        "kept back-leftmost-",
        "kept back-margin-",
        "kept back-ups_all-",
        "kept back-tps_logit-",
        *(
            f"greedy-{source}-{rest}"
            for source in ("random", "entropy", "margin", "leftmost", "ups_all", "tps_logit")
            for rest in (
                "{}-routed",
                "{'cache': 'prefix'}-plain",
                "{'cache': 'dual', 'cache_refresh': 2}-plain",
            )
        ),
        "to_know_who_is_done[{'threshold': 0.06}",
    ),
    "test_review.py": (
        "steps=8,early_stop=True,temperature=0.5]",
        "budgets_hold[None-",
        "budgets_hold[1-",
        "'steps': 16, 'revise'",
        "{'gen_length': 16, 'block_length': 4, 'steps': 8, 'early_stop'",
        "batch[method=vanilla,num_candidates_per_block=3",
        "threshold=0.8-gen_length=16,block_length=4,steps=8,sampling",
        "attempts=3-gen_length=16,block_length=4,steps=8,revise",
        "attempts=3-gen_length=16,block_length=4,steps=8,threshold",
        "batch[backmasking_rule=legacy,backmasking_lookback=3",
        "batch[num_demasking_candidates=3",
        "batch[method=window,backmasking_frequency=3",
    ),
    "test_remask_sft.py": (
        "uninterrupted_one[['--lora']]",
        "uninterrupted_one[['--joint']]",
        "uninterrupted_one[['--incorrect",
    ),
    "test_distributed.py": ("class_that_they_loaded[joint, DDP",),
    "test_estimators.py": (
        "any_number_of_rows[table-8-8",
        "less_weight[10-64",
        "less_weight[16-16",
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
        # other numbers of a rule that another row has
        *(
            f"{test}[gen_length=12,{options}"
            for test in ("batch_around_it", "judged_at_once", "whose_place")
            for options in (
                "steps=5]",
                "block_length=6,steps=8,temperature=0.8]",
                "block_length=3,steps=8,confidence_source=margin",
                "threshold=1.0,block_length=6]",
                "factor=3.0",
                "error_budget=2.5,confidence_source",
                "factor=2.0,max_dependence",
                "error_budget=1.2,revise_below",
                "schedule=independent,block_length=4",
                "confidence_of=filtered,top_k=4",
                "schedule=dream,block_length=6",
                "threshold=0.5,paced=True",
                "remask_ratio=0.34",
            )
        ),
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
    "test_compiling.py": (
        "an_adapter_takes_part",
        "of_eager_layers[True]",
        "it_runs_eager[after it]",
    ),
    "test_golden.py": (
        "the_others_are_checked[layout1",
        "reproduced[sdar-generate]",
        "passes_over_a_readme",
        "reproduced[llada2-generate_edit",
        "reproduced[llada_moe-generate",
        "reproduced[illada-generate",
        "reproduced[dream-parallel",
    ),
    "test_memory_batches.py": (
        "lost_or_changed[llada-{'temperature'",
        "lost_or_changed[llada-{'cfg_scale'",
        "guidance_counted[{'cfg_scale': 0.5}-60",
        "60-batch_tokens",
        "80-batch_tokens",
    ),
    "test_scaled_linear.py": ("change_nothing[fp8",),
    "test_quantization.py": (
        "left_alone[int8",
        "left_alone[fp8",
        "{'checkpoint_format': 'gptq_v2'}-{}-quantize",
        "{'group_size': -1}-{}-quantize",
        "{'group_size': 40}-{'include_bias': True}-quantize",
        "'checkpoint_format': None}-{'n_kv_heads': 2}-quantize",
        "keeps_its_accuracy[int8_dynamic",
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
    "test_replay.py": (
        "plain_forwards[{'cache': 'dual', 'sampling_method'",
        "plain_forwards[{'cache': 'dual'}]",
        "plain_forwards[{'cache': 'dual', 'threshold': 0.2}]",
    ),
    "test_recompute.py": (
        "same_weights[router_sft",
        "same_weights[remask_sft]",
        "same_weights[sft --lora",
    ),
    # the first hundred damages of a kind are in make test, and make fuzz makes 50,000
    "test_mutations.py": tuple(
        f"a_file[{kind}-{part}"
        for kind in ("adapter", "head", "model", "prm", "router", "shards", "tokenizer")
        for part in (1, 2)
    ),
    "test_joint.py": (
        "in_the_place_of_seven[False-7]",
        "the_place_of_others_count[cast",
        "the_place_of_others_count[module",
        "the_place_of_others_count[assign",
    ),
    "test_replayed_decisions.py": ("run_as_they_are[{}]",),
    "test_policy_stream.py": (
        "towers_feedback[weight-1",
        "towers_feedback[weight-2",
        "towers_feedback[bias-1",
        "towers_feedback[bias-2",
    ),
    "test_opencompass.py": (
        "change_nothing[16-PPL",
        "change_nothing[1-LL",
        "all_labels_together[{'mc_num': 'auto:0.0001', 'mc_max': 64}-LL",
        "all_labels_together[{'mc_num': 16}-PPL",
    ),
    "test_lmeval_likelihood.py": (
        "nor_repetition[{'estimator': 'bernoulli'}",
        "nor_repetition[{'estimator': 'chain'}",
    ),
    "test_hooks.py": ("in_memory[in_memory-bi-tower",),
    "test_router.py": (
        "batch_around_it[gen_length=12,steps=6,confidence_source=tps_prob,revise=False",
        "batch_around_it[gen_length=12,steps=6,confidence_source=random,revise=False",
        "batch_around_it[gen_length=12,steps=6,confidence_source=entropy,revise=False",
        "batch_around_it[gen_length=12,steps=6,confidence_source=margin,revise=False",
        "batch_around_it[gen_length=12,steps=6,confidence_source=leftmost,revise=False",
        "batch_around_it[gen_length=12,steps=6,confidence_source=ups,revise=False",
        "batch_around_it[gen_length=12,steps=6,confidence_source=ups_all,revise=False",
        "batch_around_it[gen_length=12,steps=6,confidence_source=tps_logit,revise=False",
    ),
}


def is_sibling(file: str, name: str) -> bool:
    """Is the test of that file and name left to make test-slow?"""
    return any(part in name for part in SIBLINGS.get(file, ()))
