"""Training runs by name: model, data and hyper-parameters; every flag still overrides them.

None reproduces a paper's table. Scores are of the shipped weights on held-out problems.
docs/tiny-models.md has all that was measured, its intervals, and what was tried.

sudoku4: 4x4 sudoku from scratch, 0.85 M parameters, shipped in llada_plugins/tiny/sudoku4.
  command  python -m training.sft --preset sudoku4 --output_dir outputs/sudoku4
  cost     2000 updates of 64: 5 minutes of one thread
  score    .9992 at 16 steps, .9992 at threshold 0.99 and 6.00 forwards (n = 4000); seeds 1 and 2
           .9978 and .9972 at 16 steps; other kernels move a run as another seed does

sudoku4_ups: a UPS head of 16.6 k parameters on it, shipped in its folder ups.
  command  python -m training.remask_sft --preset sudoku4_ups --output_dir outputs/sudoku4_ups
  cost     500 updates of 64: 56 CPU-seconds
  score    .808 at 8 steps with revise=true, for .760 (n = 1000)

few_shot_short, then few_shot: running totals after worked examples, 0.2 M parameters; shipped
nowhere. The second starts from ./outputs/few_shot_short.
  command  python -m training.sft --preset few_shot_short --output_dir outputs/few_shot_short
           python -m training.sft --preset few_shot --output_dir outputs/few_shot
  cost     1600 updates of 32 rows of 41 tokens, then 300 of 32 rows of 125:
           230 + 70 CPU-seconds
  score    .990 at threshold 0.99 (n = 200); other runs .810 and .996 (seeds 0, 1, n = 1000)

nim_any_move, then nim: the second starts from ./outputs/nim_any_move; shipped in tiny/nim.
  command  python -m training.sft --preset nim_any_move --output_dir outputs/nim_any_move
           python -m training.sft --preset nim --output_dir outputs/nim
  cost     6000 updates of 64, then 1000: 460 + 64 CPU-seconds
  score    .997 at 8 steps, .997 at threshold 0.99 and 1.13 forwards (n = 1000); seed 1 .978

nim_router, sudoku4_router: routers of 100 k parameters, shipped in their folders router.
  command  python -m training.router_sft --preset sudoku4_router --output_dir outputs/sudoku4_router
  cost     150 updates of 128: 66 CPU-seconds on sudoku4, 29 on Nim
  score    no gain: masked cross-entropy +.0006 of .0952 on sudoku4, +.0011 +-.0007 of .0046 on Nim

wikitext2: a byte-level language model for mask-and-refine; shipped nowhere.
  command  python -m training.pretrain --preset wikitext2 --output_dir outputs/wikitext2
  cost     6000 updates of 16 rows of 128: 503 CPU-seconds
  score    at most 1.829 nats a byte, a perplexity of 6.23

sudoku4_prm: a verifier of rows, 124 k parameters, shipped in the folder prm of sudoku4.
  command  python -m training.prm_sft --preset sudoku4_prm --output_dir outputs/sudoku4_prm
  cost     500 updates of 64: 51 CPU-seconds
  score    AUC .997 on greedy answers, .997 on sampled ones
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from llada_plugins.tasks import few_shot, nim, sudoku
from training.data.steps import StepRow
from training.data.sudoku_steps import solutions_in_steps

Pairs = list[tuple[str, str]]
NUM_VALIDATION = 500  # problems that a run is evaluated on, none of the test split's


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A model with its data.

    model: of one from scratch the fields of LLaDAConfig but the vocabulary's, else the
    checkpoint to start from.

    arguments: defaults of the command's flags.
    """

    model: dict[str, Any] | str
    pairs: Callable[[], tuple[Pairs, Pairs]]  # (prompt, answer) texts to train on, to evaluate on
    append_eos: bool
    arguments: dict[str, Any]


def starting_from(
    model: str | None, name: str, presets: Mapping[str, Preset]
) -> Mapping[str, Preset]:
    """The presets, that of this name from another checkpoint; None: from its own.

    Raises ValueError where it trains a model from scratch.
    """
    if model is None or name not in presets:
        return presets
    if not isinstance(presets[name].model, str):
        raise ValueError(
            f"--preset {name} trains a model from scratch: leave --model out, or give --data FILE "
            "in place of the preset"
        )
    return {**presets, name: replace(presets[name], model=model)}


def sudoku_pairs(num: int, seed: int = 0) -> tuple[Pairs, Pairs]:
    train = sudoku.problems("train", num, seed=seed)
    return list(train), list(sudoku.problems("validation", NUM_VALIDATION))


def nim_pairs(num: int, seed: int = 0, *, any_move: bool = False) -> tuple[Pairs, Pairs]:
    train = nim.problems("train", num, seed=seed, any_move=any_move)
    held_out = nim.num_positions("validation")
    return list(train), list(nim.problems("validation", held_out, any_move=any_move))


def few_shot_pairs(num: int, num_examples: int = few_shot.NUM_EXAMPLES) -> tuple[Pairs, Pairs]:
    train = few_shot.problems("train", num, num_examples=num_examples)
    held_out = few_shot.problems("validation", NUM_VALIDATION, num_examples=num_examples)
    return list(train), list(held_out)


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


def plan(*, steps: int, rate: float, warmup: int, every: int, **more: Any) -> dict[str, Any]:
    """Flags of a short run on a CPU, nothing saved in between.

    steps: updates. rate: learning rate, reached after `warmup` of them. every: updates from
    one evaluation to the next. more: further flags, and others in the place of these.
    """
    common = dict(
        max_steps=steps,
        per_device_train_batch_size=64,
        learning_rate=rate,
        warmup_steps=warmup,
        weight_decay=0.01,
        adam_beta2=0.98,
        use_cpu=True,
        num_threads=1,
        seed=0,
        per_device_eval_batch_size=500,
        logging_steps=50,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="no",
    )
    return {**common, **more}


# with a decay of .01 the model learns its positions by heart: .835 of the held-out ones in the
# place of .997
OF_NIM: dict[str, Any] = dict(bf16=True, weight_decay=0.3, logging_steps=100)

PRESETS = {
    "sudoku4": Preset(
        model=TINY_SHAPE,
        pairs=partial(sudoku_pairs, 60_000),
        append_eos=False,  # every answer has 16 digits
        arguments=plan(steps=2000, rate=2e-3, warmup=100, every=500, bf16=True),
    ),
    "few_shot_short": Preset(
        model=dict(TINY_SHAPE, d_model=64, n_layers=3, mlp_hidden_size=192),
        pairs=partial(few_shot_pairs, 60_000, num_examples=2),
        append_eos=False,  # every answer has 6 digits
        arguments=plan(
            steps=1600,
            rate=3e-3,
            warmup=100,
            every=500,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=250,
            logging_steps=100,
        ),
    ),
    "few_shot": Preset(
        model="./outputs/few_shot_short",
        pairs=partial(few_shot_pairs, 20_000),
        append_eos=False,
        arguments=plan(
            steps=300,
            rate=1e-3,
            warmup=20,
            every=100,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=250,
        ),
    ),
    "nim_any_move": Preset(
        model=TINY_SHAPE,
        pairs=partial(nim_pairs, 60_000, any_move=True),
        append_eos=False,  # every answer has 8 characters
        arguments=plan(steps=6000, rate=2e-3, warmup=100, every=500, **OF_NIM),
    ),
    "nim": Preset(
        model="./outputs/nim_any_move",
        pairs=partial(nim_pairs, 60_000),
        append_eos=False,
        arguments=plan(steps=1000, rate=1e-3, warmup=50, every=250, **OF_NIM),
    ),
}

UPS_PRESETS = {
    "sudoku4_ups": Preset(
        model="tiny",
        # one epoch of puzzles, drawn apart from those that the backbone was trained on
        pairs=partial(sudoku_pairs, 32_000, seed=1),
        append_eos=False,
        arguments=plan(steps=500, rate=5e-3, warmup=20, every=125),
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
        model="nim",  # one epoch of other draws of the backbone's positions: there are no more
        pairs=partial(nim_pairs, 19_200, seed=1),
        append_eos=False,
        arguments=_ROUTER_ARGUMENTS,
    ),
    "sudoku4_router": Preset(
        model="sudoku4",
        pairs=partial(sudoku_pairs, 16_000, seed=1),
        append_eos=False,
        arguments=_ROUTER_ARGUMENTS,
    ),
}


@dataclass(frozen=True, kw_only=True)
class PretrainPreset:
    """Flags of pre-training, data and shape included.

    arguments: defaults of the command's flags.
    """

    arguments: dict[str, Any]


PRETRAIN_PRESETS = {
    "wikitext2": PretrainPreset(
        arguments=plan(
            steps=6000,
            rate=2e-3,
            warmup=100,
            every=500,
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
            per_device_train_batch_size=16,
            per_device_eval_batch_size=32,
            bf16=True,
            logging_steps=100,
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class PRMPreset:
    """A process reward model from scratch.

    model: fields of Qwen2Config but the vocabulary's. tokenizer: the shipped model that has it.
    """

    model: dict[str, Any]
    tokenizer: str
    # labelled solutions to train on, to evaluate on
    rows: Callable[[], tuple[list[StepRow], list[StepRow]]]
    separator: str  # after each step, which is read at its last token
    split: str  # what one step of an answer is: "block" of the sampler
    block_length: int  # tokens of such a block
    arguments: dict[str, Any]


def _sudoku_steps() -> tuple[list[StepRow], list[StepRow]]:
    return solutions_in_steps("train", 32_000), solutions_in_steps("validation", NUM_VALIDATION)


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
        arguments=plan(steps=500, rate=3e-3, warmup=50, every=125),
    ),
}
