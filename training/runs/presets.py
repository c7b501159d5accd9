"""Training runs by name: model, data and hyper-parameters; every flag of the command
line still overrides them.

sudoku4: the tiny model shipped in llada_plugins/tiny/sudoku4. 4x4 sudoku, byte-level
tokens, 0.85 M parameters.
  reproduces  no paper's table; a converged backbone for the decoding, UPS, ALA and PRM comparisons on CPU
  command     python -m training.sft --preset sudoku4 --output_dir outputs/sudoku4
  cost        1000 updates of 64: 99 s on two idle cores with bf16 (168 CPU-seconds). On busy cores take --num_threads 1 (134 CPU-seconds):
              two threads then wait for each other, and other rounding gives another, equally valid model
  scores      greedy low-confidence decoding, one block, held-out puzzles, any valid completion counts:
              steps                            4     6     8     12    16    8 (random order)
              the shipped weights, n = 500    .588  .724  .772  .908  .992  .632
              the shipped weights, n = 2000   .565  .716  .745  .912  .986  .611
              --num_threads 1, n = 2000       .517  .697  .730  .870  .969  .509

sudoku4_ups: the UPS head shipped beside that model, in llada_plugins/tiny/sudoku4/ups.
16.6 k parameters on the frozen backbone.
  reproduces  no paper's table; RemeDi's Remask SFT (arXiv 2509.23653) with a light head
  command     python -m training.remask_sft --preset sudoku4_ups --output_dir outputs/sudoku4_ups
  cost        500 updates of 64: 55 CPU-seconds on one thread, of which 10 are start and evaluations
  scores      the sampler of the same puzzles, 8 steps, n = 2000, any valid completion counts; 95 % intervals by paired bootstrap:
              tokens stay, tps_prob .745; revise=true with random .573, tps_prob .770, ups .821, ups_all .775
              ups - plain +.076 [.059, .093]; ups - tps_prob +.052 [.030, .074]; tps_prob - random +.197 [.171, .223]
              AUC of clean against incorrect tokens, h and tps_prob: answers .897 and .719, samples .794 and .496, vocabulary .727 and .995
  tried       250 updates at 2e-3, as a smaller study had it: AUC .760, ups - plain +.079 [.061, .097]; 1000 at 2e-3: AUC .908

nim_any_move, then nim: the model shipped in llada_plugins/tiny/nim, of sudoku4's shape.
Nim with 2-4 heaps of 1-7.
  reproduces  no paper's table; a backbone for the comparison of routers (ALA) with their control
  command     python -m training.sft --preset nim_any_move --output_dir outputs/nim_any_move
              python -m training.sft --preset nim --output_dir outputs/nim                    starts from ./outputs/nim_any_move
  cost        6000 updates of 64, then 1000: 460 + 64 CPU-seconds on one thread
  scores      decoding as above, 1000 held-out positions, any winning move counts (500 each out of distribution):
              steps                            2     4     8     8 (random order)   8, more heaps   8, larger heaps
              the shipped weights             .630  .774  .835  .729               .012            .086
              nim_any_move alone              .519  .648  .732  .628               .016            .092
  tried       4500 updates from scratch on nim's answers: .586 at 8 steps, but .779 on positions that it was trained on

nim_router, sudoku4_router: the routers shipped in the folders `router` of these models,
100 k parameters.
  reproduces  no paper's table; the plan's router-only training
  command     python -m training.router_sft --preset sudoku4_router --output_dir outputs/sudoku4_router        (nim_router alike)
  cost        150 updates of 128: 74 CPU-seconds on sudoku4, 29 on Nim, evaluations included
  scores      masked cross-entropy on held-out problems by benchmarks/ala_report.py, 3 seeds, 1000 problems, 95 % intervals over problems:
              sudoku4  .1402 without; the router -.0029 +-.0008, the static bias without any prompt -.0030 +-.0009
              nim      .1106 without; the router +.0013 +-.0008, the static bias +.0133 +-.0047
              on sudoku4 all that the router gains the static bias gains too, and accuracy does not move; on Nim, whose backbone knows its
              positions by heart, both lose: at 8 steps -.012 +-.007 and -.019 +-.008 of .835, and nothing moves out of distribution
  tried       on Nim, 2 layers with an MLP: two seeds alike, the third broke the model (.512). The intervals do not cover seeds.
              The rate is too high, not that seed: one update can move a seed by 128 x 2e-3 where embeddings have RMS .08 (.03 on sudoku).
              In the warm-up the gradient's norm goes from .1 to over 200 and the loss above 1.6 with seed 0 too, which comes back to
              .1066; seed 2 ends at .2459 (.1030 before). Seed 2 with --max_grad_norm 0.1: .1023; --learning_rate 1e-3: .1047, 5e-4:
              .1025; --adam_beta2 0.98: .1048, all with norms of 37 to 211 on the way. --router_scaled --learning_rate 1e-3: .1019,
              norm 0.082 and loss 0.1056 at most; benchmarks/ala_report.py takes it for the deep ones

wikitext2: a byte-level model of sudoku4's shape on WikiText-2, the mask-and-refine
proof of concept; shipped nowhere.
  reproduces  no paper's table
  command     python -m training.pretrain --preset wikitext2 --output_dir outputs/wikitext2
              where there is no network --dataset FOLDER --train_split valid --eval_split test, as measured here
  cost        6000 updates of 16 rows of 128: 503 CPU-seconds on one thread, evaluations and samples included
  scores      trained on the 1.1 MB of valid.txt (11 epochs), bound on 512 rows of test.txt, nats a byte: 6.058 before training, then after each
              500 updates 2.345, 2.155, 2.082, 2.022, 1.981, 1.941, 1.900, 1.874, 1.853, 1.840, 1.831, 1.829: a perplexity of 6.23 a byte at most
  tried       the average of weights (EMA, .99; .994 is worse) in place of the last ones, 1500 updates, one seed: cosine 2.052 for 2.051;
              --lr_scheduler_type warmup_stable_decay over the last 450 updates 2.029 for 2.028; a constant rate 2.022 for 2.083. It does
              what a decay does, and a decay is there already

sudoku4_prm: the process reward model shipped in llada_plugins/tiny/sudoku4/prm. 124 k
parameters, two causal layers.
  reproduces  no paper's table; a verifier of rows for candidates and back-masking (LLaDA-R3)
  command     python -m training.prm_sft --preset sudoku4_prm --output_dir outputs/sudoku4_prm
  cost        500 updates of 64: 34 CPU-seconds on one thread, start and measurement included
  scores      AUC of right against wrong rows of the tiny model's answers to 500 held-out puzzles, one forward a row; in brackets that of
              the tiny model's own probability of the row:        greedy .996 (.714), sampled at temperature .7 .992 (.720)
  tried       weights drawn at transformers' .02 instead of .1 learn little in 500 updates: AUC .64 at most; mistakes near a right row
              instead of random digits: .94
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llada_plugins.tasks import nim, sudoku
from training.data.steps import StepRow
from training.data.sudoku_steps import solutions_in_steps

Pairs = list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """model: of one from scratch the fields of LLaDAConfig but the vocabulary's, else
    the checkpoint to start from.

    arguments: defaults of the command's flags.
    """

    model: dict[str, Any] | str
    pairs: Callable[[], tuple[Pairs, Pairs]]  # (prompt, answer) texts to train on, to evaluate on
    append_eos: bool
    arguments: dict[str, Any]


def _sudoku_pairs() -> tuple[Pairs, Pairs]:
    return list(sudoku.problems("train", 60_000)), list(
        sudoku.problems("test", sudoku.DEFAULT_NUM_TEST)
    )


def _nim_any_move_pairs() -> tuple[Pairs, Pairs]:
    return list(nim.problems("train", 60_000, any_move=True)), list(
        nim.problems("test", nim.DEFAULT_NUM_TEST, any_move=True)
    )


def _nim_pairs() -> tuple[Pairs, Pairs]:
    return list(nim.problems("train", 60_000)), list(nim.problems("test", nim.DEFAULT_NUM_TEST))


def _more_nim_pairs() -> tuple[Pairs, Pairs]:
    """One epoch of positions; other draws of those that the backbone was trained on,
    there are no more.
    """
    return list(nim.problems("train", 19_200, seed=1)), list(
        nim.problems("test", nim.DEFAULT_NUM_TEST)
    )


def _more_sudoku_pairs() -> tuple[Pairs, Pairs]:
    """One epoch of puzzles, drawn apart from those that the backbone was trained on."""
    return list(sudoku.problems("train", 32_000, seed=1)), list(
        sudoku.problems("test", sudoku.DEFAULT_NUM_TEST)
    )


def _router_sudoku_pairs() -> tuple[Pairs, Pairs]:
    return list(sudoku.problems("train", 16_000, seed=1)), list(
        sudoku.problems("test", sudoku.DEFAULT_NUM_TEST)
    )


TINY_SHAPE = dict(
    d_model=128,
    n_heads=4,
    n_layers=4,
    mlp_hidden_size=336,
    max_sequence_length=4096,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
    weight_tying=False,
    include_bias=False,
    include_qkv_bias=False,
    rope_full_precision=True,
)

PRESETS = {
    "sudoku4": Preset(
        model=TINY_SHAPE,
        pairs=_sudoku_pairs,
        append_eos=False,  # every answer has 16 digits
        arguments=dict(
            max_steps=1000,
            per_device_train_batch_size=64,
            learning_rate=2e-3,
            warmup_steps=100,
            weight_decay=0.01,
            adam_beta2=0.98,
            bf16=True,
            use_cpu=True,
            num_threads=2,
            seed=0,
            per_device_eval_batch_size=500,
            logging_steps=50,
            eval_strategy="steps",
            eval_steps=250,
            save_strategy="no",
        ),
    ),
    "nim_any_move": Preset(
        model=TINY_SHAPE,
        pairs=_nim_any_move_pairs,
        append_eos=False,  # every answer has 8 characters
        arguments=dict(
            max_steps=6000,
            per_device_train_batch_size=64,
            learning_rate=2e-3,
            warmup_steps=100,
            weight_decay=0.01,
            adam_beta2=0.98,
            bf16=True,
            use_cpu=True,
            num_threads=1,
            seed=0,
            per_device_eval_batch_size=500,
            logging_steps=100,
            eval_strategy="steps",
            eval_steps=500,
            save_strategy="no",
        ),
    ),
    "nim": Preset(
        model="./outputs/nim_any_move",
        pairs=_nim_pairs,
        append_eos=False,
        arguments=dict(
            max_steps=1000,
            per_device_train_batch_size=64,
            learning_rate=1e-3,
            warmup_steps=50,
            weight_decay=0.01,
            adam_beta2=0.98,
            bf16=True,
            use_cpu=True,
            num_threads=1,
            seed=0,
            per_device_eval_batch_size=500,
            logging_steps=100,
            eval_strategy="steps",
            eval_steps=250,
            save_strategy="no",
        ),
    ),
}

UPS_PRESETS = {
    "sudoku4_ups": Preset(
        model="tiny",
        pairs=_more_sudoku_pairs,
        append_eos=False,
        arguments=dict(
            max_steps=500,
            per_device_train_batch_size=64,
            learning_rate=5e-3,
            warmup_steps=20,
            weight_decay=0.01,
            adam_beta2=0.98,
            use_cpu=True,
            num_threads=1,
            seed=0,
            per_device_eval_batch_size=500,
            logging_steps=50,
            eval_strategy="steps",
            eval_steps=125,
            save_strategy="no",
        ),
    ),
}

_ROUTER_ARGUMENTS = dict(
    max_positions=64,
    max_steps=150,
    per_device_train_batch_size=128,
    learning_rate=2e-3,
    warmup_steps=20,
    use_cpu=True,
    num_threads=1,
    seed=0,
    per_device_eval_batch_size=500,
    logging_steps=25,
    eval_strategy="steps",
    eval_steps=50,
    save_strategy="no",
)

ROUTER_PRESETS = {
    "nim_router": Preset(
        model="nim", pairs=_more_nim_pairs, append_eos=False, arguments=_ROUTER_ARGUMENTS
    ),
    "sudoku4_router": Preset(
        model="sudoku4", pairs=_router_sudoku_pairs, append_eos=False, arguments=_ROUTER_ARGUMENTS
    ),
}


@dataclass(frozen=True, kw_only=True)
class PretrainPreset:
    """Flags of pre-training, data and shape included. arguments: defaults of the
    command's flags.
    """

    arguments: dict[str, Any]


PRETRAIN_PRESETS = {
    "wikitext2": PretrainPreset(
        arguments=dict(
            dataset="wikitext2",
            d_model=128,
            n_layers=4,
            n_heads=4,
            mlp_hidden_size=336,
            seq_len=128,
            eval_rows=512,
            remask_ratio=0.2,
            top_k=50,
            top_p=0.9,
            max_steps=6000,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=32,
            learning_rate=2e-3,
            weight_decay=0.01,
            adam_beta2=0.98,
            warmup_steps=100,
            bf16=True,
            use_cpu=True,
            num_threads=1,
            seed=0,
            logging_steps=100,
            eval_strategy="steps",
            eval_steps=500,
            save_strategy="no",
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class PRMPreset:
    """A process reward model from scratch. model: fields of Qwen2Config but the
    vocabulary's; tokenizer: the shipped model that has it.
    """

    model: dict[str, Any]
    tokenizer: str
    # labelled solutions to train on, to evaluate on
    rows: Callable[[], tuple[list[StepRow], list[StepRow]]]
    separator: str  # behind each step, read at its last token
    split: str  # what one step of an answer is: "block" of the sampler
    block_length: int  # tokens of such a block
    arguments: dict[str, Any]


def _sudoku_steps() -> tuple[list[StepRow], list[StepRow]]:
    return solutions_in_steps("train", 32_000), solutions_in_steps("test", sudoku.DEFAULT_NUM_TEST)


PRM_PRESETS = {
    "sudoku4_prm": PRMPreset(
        model=dict(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=192,
            max_position_embeddings=4096,
            initializer_range=0.1,
            classifier_dropout=0.0,
        ),
        tokenizer="sudoku4",
        rows=_sudoku_steps,
        separator="\n",
        split="block",
        block_length=4,
        arguments=dict(
            max_steps=500,
            per_device_train_batch_size=64,
            learning_rate=3e-3,
            warmup_steps=50,
            weight_decay=0.01,
            adam_beta2=0.98,
            use_cpu=True,
            num_threads=1,
            seed=0,
            per_device_eval_batch_size=500,
            logging_steps=50,
            eval_strategy="steps",
            eval_steps=125,
            save_strategy="no",
        ),
    ),
}
