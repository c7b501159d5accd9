"""What PRM training trains, writes and measures.

It trains a two-class head on any causal decoder, read at the last token of each step's
separator. The output folder is what transformers' AutoModelForTokenClassification and
AutoTokenizer load; its config.json says beside their keys how steps are separated
(`step_separator`) and, of a preset, what one step is (`step_split`).
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForTokenClassification,
)

from llada_plugins.files.json_files import first_line, read_json
from llada_plugins.models.folder import SHIPPED, resolve, tensor_files
from llada_plugins.models.tokenizer import load_tokenizer
from llada_plugins.options.fields import arg
from llada_plugins.reports.metrics import auc
from llada_plugins.rewards.process_reward_model import CAUSAL, CONFIG, PRMConfig, load_prm
from llada_plugins.tasks import sudoku
from training.data import sudoku_steps
from training.data.steps import (
    FORM,
    Encode,
    StepExample,
    StepRow,
    collate_steps,
    read_steps,
    step_encoder,
)
from training.loop.objectives import IGNORED, Loss
from training.loop.trainer import Save

from .arguments import RunArguments
from .command import Run
from .jobs import Job, add_metrics, copy_tokenizer
from .presets import PRM_PRESETS

logger = logging.getLogger(__name__)

METRICS = ("loss", "step_auc", "step_accuracy", "right_share")  # that config.json keeps
StepJob = Job[PreTrainedModel, list[StepExample]]


@dataclass(frozen=True, kw_only=True)
class PRMOptions:
    """What is trained on what."""

    preset: str | None = arg(
        None,
        f"a PRM from scratch with its data: {', '.join(PRM_PRESETS)}; it sets the other flags' "
        "defaults",
    )
    model: str | None = arg(
        None,
        "folder or hub id of a token classifier, or of another causal model, which gets a fresh "
        "head",
    )
    data: str | None = arg(None, f"JSONL file of rows {FORM}")
    eval_data: str | None = arg(
        None, "JSONL file of the same form for evaluation loss and AUC (see --eval_strategy)"
    )
    separator: str | None = arg(
        None,
        "text after each step, taken as it is; its last token is where the step is read (default: "
        "the checkpoint's step_separator, else a newline)",
    )
    max_length: int | None = arg(
        None, "tokens of the longest row; longer ones are skipped (default: the model's context)"
    )

    def __post_init__(self) -> None:
        if (self.preset is None) == (self.model is None):
            raise ValueError("give --preset NAME, or --model DIR with --data FILE.jsonl")
        of_data = (self.data, self.eval_data, self.separator, self.max_length)
        if self.preset is not None and any(value is not None for value in of_data):
            raise ValueError(
                "a preset brings its own data: leave --data, --eval_data, --separator and "
                "--max_length out"
            )


def prepare(options: PRMOptions, arguments: RunArguments, command: Sequence[str]) -> Run:
    """The run that `python -m training.prm_sft` was asked for."""
    if options.preset:
        job = preset_prm_job(options.preset, arguments.seed)
    else:
        job = checkpoint_prm_job(options, arguments.seed)
    folder = Path(arguments.output_dir)

    def finish(found: Mapping[str, float]) -> None:
        metrics: dict[str, Any] = {
            name: found[f"eval_{name}"] for name in METRICS if f"eval_{name}" in found
        }
        if options.preset:
            metrics["answers of the tiny model"] = measure_answers(folder)
        add_metrics(folder / "config.json", metrics)

    return Run(
        job=job,
        objective=token_class,
        save=save_prm(job.tokenizer_folder, {"command": shlex.join(command)}),
        measure=measure,
        finish=finish,
    )


def token_class(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Loss:
    """Cross-entropy (nats) of right against wrong where a step is read, mean over steps.

    Predictions are log-odds of right, (B, L).
    """
    tokens, labels = batch["input_ids"], batch["labels"]  # (B, L)
    found = model(input_ids=tokens, attention_mask=batch["attention_mask"], use_cache=False)
    logits = found.logits.float()  # (B, L, 2)
    total = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    log_odds = logits[..., 1] - logits[..., 0]  # (B, L)
    return Loss(total, batch["weight"].sum(), log_odds.detach(), labels)


# --- jobs -----------------------------------------------------------------------------


def preset_prm_job(name: str, seed: int) -> StepJob:
    """A preset's model from scratch, its rows, and a shipped model's tokenizer."""
    if name not in PRM_PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRM_PRESETS)}, got {name!r}")
    preset = PRM_PRESETS[name]
    folder = SHIPPED[preset.tokenizer]
    tokenizer = load_tokenizer(folder)
    # transformers draws weights from the global state alone
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForTokenClassification(
            Qwen2Config(
                vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **preset.model
            )
        )
    model.config.step_separator = preset.separator
    model.config.step_split = preset.split
    model.config.block_length = preset.block_length
    encode = step_encoder(tokenizer, preset.separator)
    train, evaluation = ([encode(row) for row in rows] for rows in preset.rows())
    return Job(model, train, evaluation, collate_steps(tokenizer.pad_token_id), folder)


def checkpoint_prm_job(options: PRMOptions, seed: int) -> StepJob:
    """The checkpoint and the JSONL files that the options name."""
    if options.data is None:
        raise ValueError("--model needs --data FILE.jsonl")
    rows = read_steps(Path(options.data))
    held_out = None if options.eval_data is None else read_steps(Path(options.eval_data))
    folder = resolve(options.model, option="--model")
    tokenizer = load_tokenizer(folder)
    model = _classifier(folder, seed)
    context = model.config.max_position_embeddings
    longest = context if options.max_length is None else options.max_length
    if not 0 < longest <= context:
        raise ValueError(
            f"--max_length must be between 1 and the model's {context} tokens, got {longest}"
        )
    separator = options.separator
    if separator is None:
        separator = getattr(model.config, "step_separator", "\n")
    try:
        encode = step_encoder(tokenizer, separator)
    except ValueError:
        raise ValueError(
            f"--separator {separator!r} has no token in the tokenizer of {folder}: give other text"
        ) from None
    # the published commands of TRL's models trained on this by accident: it is not refused
    if "\\n" in separator:
        logger.info(
            "--separator %r holds a backslash and an n, not a newline; a newline is $'\\n' in bash",
            separator,
        )
    model.config.step_separator = separator
    train = _fitting(rows, options.data, encode, longest)
    evaluation = None
    if held_out is not None:
        evaluation = _fitting(held_out, str(options.eval_data), encode, longest)
    return Job(model, train, evaluation, collate_steps(tokenizer.pad_token_id or 0), folder)


def _fitting(
    rows: Sequence[StepRow], path: str, encode: Encode, max_length: int
) -> list[StepExample]:
    examples = [encode(row) for row in rows]
    kept = [example for example in examples if len(example.input_ids) <= max_length]
    if not kept:
        raise ValueError(
            f"{path}: all {len(rows)} rows are longer than {max_length} tokens: give shorter "
            "ones, or a model that takes more"
        )
    if len(kept) < len(rows):
        logger.info(
            "%s: %d of %d rows are longer than %d tokens and skipped",
            path,
            len(rows) - len(kept),
            len(rows),
            max_length,
        )
    return kept


def _classifier(folder: Path, seed: int) -> PreTrainedModel:
    """The folder's model in fp32 with its two-class head.

    One that is no classifier yet gets a fresh head, which is logged.
    """
    raw = read_json(folder / "config.json", CONFIG)
    names = tensor_files(folder)
    if raw.get("model_type") not in CAUSAL:
        raise ValueError(
            f"{folder}: model_type is {raw.get('model_type')!r}, expected one of "
            f"{', '.join(CAUSAL)}: the scorer reads causal models alone, where a step's score "
            "depends on nothing after it"
        )
    if "score.0.weight" in names:
        raise ValueError(
            f"{folder}: its head has two layers (Qwen2.5-Math-PRM): only token classification "
            "with one linear map is trained"
        )
    architectures = raw.get("architectures") or []
    trained = any(name.endswith("ForTokenClassification") for name in architectures)
    model, missing = _read_classifier(folder, seed, trained)
    prefix = model.base_model_prefix + "."
    head = [name for name in missing if not name.startswith(prefix)]
    if len(missing) > len(head) or (trained and head):
        raise ValueError(f"{folder}: tensors are missing: {', '.join(missing[:8])}")
    if head:
        logger.info(
            "%s has no token-classification head: training starts from a fresh one (%s)",
            folder,
            ", ".join(head),
        )
    return model.float()


def _read_classifier(folder: Path, seed: int, trained: bool) -> tuple[PreTrainedModel, list[str]]:
    """The model as transformers reads it, and the names of the tensors that it lacks.

    trained: is it a classifier already? Then its head must have two classes.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
        if trained and config.num_labels != 2:
            raise ValueError(
                f"its head has {config.num_labels} classes, a PRM's has 2 (wrong, right)"
            )
        config.num_labels = 2
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, found = AutoModelForTokenClassification.from_pretrained(
                folder, config=config, use_safetensors=True, output_loading_info=True
            )
    except Exception as error:  # transformers has many kinds, and messages of many lines
        raise ValueError(
            f"{folder}: not a model for token classification: {first_line(error)}"
        ) from None
    return model, sorted(found["missing_keys"])


# --- metrics --------------------------------------------------------------------------


def measure(predictions: Tensor, labels: Tensor) -> dict[str, float]:
    """Of all steps of an evaluation: AUC and accuracy at .5 of P(right), share of right steps.

    There is no AUC where it does not exist.
    """
    read = labels != IGNORED
    log_odds, right = predictions[read], labels[read] == 1
    found = {
        "step_auc": auc(log_odds, right),
        "step_accuracy": float(((log_odds > 0) == right).double().mean()),
        "right_share": float(right.double().mean()),
    }
    return {name: value for name, value in found.items() if value == value}  # NaN is not JSON


def measure_answers(
    folder: Path, num: int = sudoku.DEFAULT_NUM_TEST
) -> dict[str, dict[str, float]]:
    """`measure` of the PRM in `folder`, as the evaluation loads it.

    It judges the rows of the tiny model's answers to the test puzzles.

    Greedy and sampled answers; confidence_auc: the same from the tiny model's own
    probability of the row.
    """
    scorer = load_prm(
        PRMConfig(prm=str(folder), prm_batch_size=sudoku_steps.DECODED_TOGETHER), "cpu"
    )
    puzzles = [problem.puzzle for problem in sudoku.problems("test", num)]
    found = {}
    for temperature in (0.0, 0.7):
        answers = sudoku_steps.answers(puzzles, temperature)
        right = torch.tensor([label for answer in answers for label in answer.row.labels])
        scores = scorer.score([(answer.row.prompt, answer.row.completions) for answer in answers])
        confidence = torch.tensor([value for answer in answers for value in answer.confidence])
        log_odds = torch.tensor(
            [value for values in scores for value in values], dtype=torch.float64
        ).logit()
        found[f"temperature {temperature:g}"] = {
            **measure(log_odds, right.long()),
            "confidence_auc": auc(confidence, right),
        }
    return found


# --- output folders -------------------------------------------------------------------


def save_prm(tokenizer_folder: Path, description: Mapping[str, Any]) -> Save:
    """Writes the model as transformers does, with the tokenizer's files as they are.

    description: config.json's key `training`.
    """

    def save(model: nn.Module, folder: Path, state: Mapping[str, Tensor] | None) -> None:
        assert isinstance(model, PreTrainedModel)
        model.config.training = dict(description)
        model.save_pretrained(folder, state_dict=None if state is None else dict(state))
        for path in folder.glob("*.safetensors"):
            path.chmod(0o644)  # the library gives it mode 0600, whatever the umask
        copy_tokenizer(tokenizer_folder, folder)

    return save
