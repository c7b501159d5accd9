"""What an unmasking-policy stream knows and what the sampler does with it, measured on one set of problems.

    python -m llada_plugins.ups_report --output outputs/ups_report                         the tiny model, 4x4 sudoku; a CPU minute
    python -m llada_plugins.ups_report --pretrained DIR --ups DIR --data FILE.jsonl --output DIR

Detection: how well sigmoid(h) tells clean tokens from incorrect ones (AUC, calibration, confusion matrix), beside the token's own
probability on the same tokens, under three kinds of incorrect token. Decoding: the mask count after every step, forwards, latency,
and tokens that were wrong, masked again and corrected, for every source in the same sampler. Writes ups_report.json, trajectories.txt
and four PNG plots, all or nothing. Accuracy comparisons with intervals are benchmarks/ablation.py's business.
"""
from __future__ import annotations

import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llada_plugins.diffusion.denoiser import PADDING, Canvas, Denoiser, align
from llada_plugins.diffusion.forward_process import Replace, another_of, remask_noise
from llada_plugins.engine.engine import Engine
from llada_plugins.methods.table import check_policy
from llada_plugins.models import text
from llada_plugins.options.fields import arg
from llada_plugins.reports.metrics import auc, confusion, expected_calibration_error
from llada_plugins.reports.render import (
    check_empty,
    draw,
    markdown,
    pyplot,
    run_command,
    whole_folder,
)
from llada_plugins.reports.trajectory import (
    MASKED,
    Decoded,
    corrections,
    expected_masks,
    record,
    removed,
    trajectory,
)
from llada_plugins.sampling.confidence import Candidates, token_probability
from llada_plugins.sampling.config import SamplerConfig

from .tasks import sudoku

SOURCES = ("plain", "tps_prob", "ups", "ups_all", "random", "entropy", "margin")        # plain never masks a token again
BINS = 15


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What is measured on what."""

    output: str = arg(help="folder for the report; must be empty or absent")
    pretrained: str | None = arg(None, "checkpoint folder or hub id (default: the tiny model shipped in the package)")
    ups: str | None = arg(None, "folder of the policy head (default: 'ups' in the checkpoint's folder)")
    data: str | None = arg(None, 'JSONL file of rows {"prompt": text, "completion": text} (default: 4x4 sudoku\'s test problems)')
    append_eos: bool = arg(True, "end every completion of --data with EOS, as training does")
    num: int = arg(500, "problems at most")
    sources: list[str] = dataclasses.field(default_factory=lambda: ["plain", "tps_prob", "random", "ups"],
                                           metadata={"help": f"samplers to decode with, of {', '.join(SOURCES)}"})
    gen_length: int | None = arg(None, "answer length in tokens (default: that of the longest completion)")
    block_length: int | None = arg(None, "tokens decoded together (default: gen_length)")
    steps: int | None = arg(None, "denoising steps for the whole answer (default: half of gen_length)")
    r_incorrect: float = arg(0.1, "peak rate (0-1) of incorrect tokens among visible ones, reached where half the answer is masked")
    r_samples: float = arg(0.5, "the same rate for tokens that the model itself draws: most of its draws are clean")
    noise_draws: int = arg(4, "noisy copies of every problem, for each kind of noise")
    num_trajectories: int = arg(5, "right answers shown step by step in which a token was corrected")
    batch_size: int = arg(50, "rows of a forward")
    device: str = arg("auto", "auto (a GPU if there is one), cpu, cuda or cuda:N")
    dtype: str = arg("auto", "auto (bfloat16 on a GPU, else float32), float32, bfloat16 or float16")
    seed: int = arg(0, "of the noise")

    def __post_init__(self) -> None:
        for name in ("num", "noise_draws", "batch_size", "steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("r_incorrect", "r_samples"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")
        if unknown := [source for source in self.sources if source not in SOURCES]:
            raise ValueError(f"sources must be among {', '.join(SOURCES)}, got {', '.join(unknown)}")


class Problem(NamedTuple):
    """A prompt with one right answer, as text and as tokens."""

    prompt: str
    completion: str
    prompt_ids: list[int]
    answer_ids: list[int]


class Noise(NamedTuple):
    """A kind of incorrect token."""

    replace: Replace
    rate: float            # r of `remask_noise`


class Visible(NamedTuple):
    """The visible answer tokens of all noisy rows, N of them; confidences on the CPU."""

    clean: Tensor          # (N,) bool
    policy: Tensor         # (N,) sigmoid(h)
    tps_prob: Tensor       # (N,) probability of the token where it stands


# --- problems --------------------------------------------------------------------------------------------------------

def read_pairs(path: Path) -> list[tuple[str, str]]:
    """(prompt, completion) of every row of a JSONL file; raises FileNotFoundError, or ValueError naming file and line."""
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such data file; give a JSONL file of rows {{"prompt": text, "completion": text}}')
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            pair = (row["prompt"], row["completion"])
        except (json.JSONDecodeError, KeyError, TypeError):
            pair = (None, None)
        if not all(isinstance(string, str) and string for string in pair):
            raise ValueError(f'{path}:{number}: expected {{"prompt": text, "completion": text}}, both not empty')
        pairs.append(pair)
    if not pairs:
        raise ValueError(f"{path}: no rows")
    return pairs


def load_problems(options: ReportOptions, engine: Engine) -> list[Problem]:
    """The file's problems, or the sudoku's, as the engine's tokens."""
    pairs = read_pairs(Path(options.data))[:options.num] if options.data else sudoku.problems("test", options.num)
    if options.data and options.append_eos and engine.special.eos is None:
        raise ValueError("--append_eos needs an EOS token: this checkpoint's config.json states no eos_token_id; pass --append_eos false")
    end = [engine.special.eos] if options.data and options.append_eos else []
    problems = []
    for prompt, completion in pairs:
        prompt_ids, answer_ids = engine.encode_pair(prompt, completion)
        problems.append(Problem(prompt, completion, prompt_ids, answer_ids + end))
    longest = max(len(problem.prompt_ids) + len(problem.answer_ids) for problem in problems)
    if longest > engine.max_length:
        raise ValueError(f"a problem of {longest} tokens exceeds the model's context of {engine.max_length}: leave it out of --data")
    return problems


def samplers(options: ReportOptions, problems: Sequence[Problem]) -> dict[str, SamplerConfig]:
    """The sampler of every source; all fields equal but those that make the source."""
    block = options.block_length or 1
    longest = max(len(problem.answer_ids) for problem in problems)
    gen_length = options.gen_length or math.ceil(longest / block) * block
    common = dict(gen_length=gen_length, block_length=options.block_length, steps=options.steps or max(1, gen_length // 2))
    return {source: compared(source, **common) for source in options.sources}


def compared(source: str, **common: Any) -> SamplerConfig:
    """A source of SOURCES in RemeDi's sampler, or plain low-confidence decoding; common: the other options of SamplerConfig."""
    return SamplerConfig(**common) if source == "plain" else SamplerConfig(revise=True, confidence_source=source, **common)


# --- detection -------------------------------------------------------------------------------------------------------

@torch.inference_mode()
def detect(engine: Engine, problems: Sequence[Problem], noise: Noise, options: ReportOptions) -> Visible:
    """Scores of the visible answer tokens of noise_draws noisy copies of every problem."""
    generator = torch.Generator().manual_seed(options.seed)
    parts = []
    for batch in _batches(list(problems) * options.noise_draws, options.batch_size):
        tokens, padded = align([problem.prompt_ids + problem.answer_ids for problem in batch], engine.model.device)      # (B, L)
        lengths = torch.tensor([len(problem.answer_ids) for problem in batch], device=tokens.device)[:, None]
        answer = torch.arange(tokens.shape[1], 0, -1, device=tokens.device) <= lengths      # answers end together
        noisy = remask_noise(tokens, answer, engine.special.mask, generator, r=noise.rate, replace=noise.replace)
        window = slice(tokens.shape[1] - int(lengths.max()), tokens.shape[1])
        prediction = engine.denoise(Canvas(noisy.tokens, tokens.shape[1] - lengths[:, 0], padded), window)
        visible = (answer & ~noisy.masked)[:, window]                                       # (B, W)
        token = noisy.tokens[:, window].clamp(min=0)
        every = torch.arange(visible.shape[1], device=tokens.device).expand_as(visible)
        own = token_probability(Candidates(prediction.logits_at(every).float(), token, ~visible, None, False, lambda: token))
        parts.append(Visible(*(values[visible].cpu() for values in
                               (~noisy.incorrect[:, window], prediction.confidence.float().sigmoid(), own))))
    found = Visible(*map(torch.cat, zip(*parts)))
    if found.clean.all() or not found.clean.any():
        raise ValueError("the noise left only clean or only incorrect tokens, too few to measure with: "
                         "give more problems, noise_draws or r_samples")
    return found


def noises(engine: Engine, problems: Sequence[Problem], options: ReportOptions) -> dict[str, Noise]:
    """The kinds of incorrect token: what the answers are written with, the whole vocabulary, and what the model itself would say."""
    special = set(engine.tokenizer.all_special_ids) | {engine.special.mask, *engine.special.ends}
    words = sorted(set(range(min(len(engine.tokenizer), engine.model.config.vocab_size))) - special)
    alphabet = sorted({token for problem in problems for token in problem.answer_ids} - special)
    if len(alphabet) < 2:
        raise ValueError("the completions are all written with one token: incorrect ones cannot be made of it")
    return {"answer_alphabet": Noise(another_of(torch.tensor(alphabet)), options.r_incorrect),
            "vocabulary": Noise(another_of(torch.tensor(words)), options.r_incorrect),
            "model_samples": Noise(model_samples(engine.denoise, engine.special.mask), options.r_samples)}


def model_samples(denoise: Denoiser, mask_id: int) -> Replace:
    """Replacements drawn from the model's own softmax at the chosen positions, which it sees masked (PRISM's noise, arXiv 2510.01384).

    A draw that equals the clean token is a clean token. Where a problem has several answers, so may one that does not.
    """
    def replace(noisy: Tensor, chosen: Tensor, tokens: Tensor, generator: torch.Generator) -> Tensor:
        start = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
        prediction = denoise(Canvas(noisy.masked_fill(chosen, mask_id), start, bool((tokens == PADDING).any())), slice(0, tokens.shape[1]))
        most = max(1, int(chosen.sum(-1).max()))
        at = chosen.logical_not().byte().argsort(dim=-1, stable=True)[:, :most]                        # (B, M), chosen columns first
        logits = prediction.logits_at(at).float()                                                      # (B, M, V)
        logits[..., mask_id] = -torch.inf
        probability = logits[chosen.gather(1, at)].softmax(-1).to(generator.device)                    # (N, V)
        if not len(probability):
            return tokens[chosen]
        return torch.multinomial(probability, 1, generator=generator)[:, 0].to(tokens.device)
    return replace


def detection_report(visible: Visible) -> dict[str, Any]:
    """AUC of both confidences, calibration of each as the probability of being clean, and the policy's confusion matrix at 0.5."""
    return {
        "num_visible": len(visible.clean), "num_incorrect": int((~visible.clean).sum()),
        "auc": {"policy": auc(visible.policy, visible.clean), "tps_prob": auc(visible.tps_prob, visible.clean)},
        "calibration_error": {"policy": expected_calibration_error(visible.policy, visible.clean, BINS),
                              "tps_prob": expected_calibration_error(visible.tps_prob, visible.clean, BINS)},
        "confusion": confusion(visible.policy, visible.clean),
        "reliability": reliability(visible.policy, visible.clean),
    }


def reliability(probability: Tensor, label: Tensor) -> list[dict[str, float]]:
    """Mean probability and share of clean tokens in each of BINS equal bins that is not empty, the bins of the calibration error."""
    number = (probability.double() * BINS).long().clamp(0, BINS - 1)
    rows = []
    for each in number.unique().tolist():
        inside = number == each
        rows.append({"low": each / BINS, "high": (each + 1) / BINS, "count": int(inside.sum()),
                     "mean_probability": float(probability[inside].double().mean()), "share_clean": float(label[inside].double().mean())})
    return rows


# --- decoding --------------------------------------------------------------------------------------------------------

def is_right(engine: Engine, options: ReportOptions, problem: Problem, answer: Sequence[int]) -> bool:
    """Any valid completion of a sudoku; of other data, the completion itself but for surrounding white space."""
    string = text.without_special_tokens(engine.tokenizer, text.decode(engine.tokenizer, answer, engine.special.ends))
    return string.strip() == problem.completion.strip() if options.data else sudoku.is_valid(problem.prompt, string)


def decoding_report(engine: Engine, problems: Sequence[Problem], configs: Mapping[str, SamplerConfig],
                    options: ReportOptions) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """What each source did, and some of its trajectories. Sources take turns in every batch, so that all meet the same machine."""
    runs: dict[str, list[Decoded]] = {source: [] for source in configs}
    batches = list(_batches(problems, options.batch_size))
    prompts = [[problem.prompt_ids for problem in batch] for batch in batches]
    record(engine, prompts[0], next(iter(configs.values())))        # a process's first run is its slowest
    for batch in prompts:
        for source, config in configs.items():
            runs[source].append(record(engine, batch, config))
    report, shown = {}, {}
    for source, config in configs.items():
        right, corrected, shown[source] = 0, 0, []
        for batch, run in zip(batches, runs[source]):
            for row, changes in enumerate(corrections(run.history)):
                if not is_right(engine, options, batch[row], run.samples[row].answer):
                    continue
                right += 1
                corrected += len(changes)
                if changes and len(shown[source]) < options.num_trajectories:
                    shown[source].append(trajectory(engine, batch[row].prompt, run.history[:, row], changes))
        report[source] = {"accuracy": right / len(problems), "corrected_in_right_answers": corrected,
                          **_decoding_numbers(runs[source], config)}
    return report, shown


def _decoding_numbers(runs: Sequence[Decoded], config: SamplerConfig) -> dict[str, Any]:
    masks = torch.cat([(run.history == MASKED).sum(-1) for run in runs], 1)        # (S + 1, all rows)
    forwards = [sample.num_forwards for run in runs for sample in run.samples]
    return {
        "masked_again": sum(int(removed(run.history).sum()) for run in runs),
        "mean_forwards": statistics.mean(forwards),
        "milliseconds_per_step_and_batch": 1000 * statistics.median(run.seconds / (len(run.history) - 1) for run in runs),
        "mask_count": masks.double().mean(1).tolist(),
        "mask_count_never_rises": bool((masks[1:] <= masks[:-1]).all()),
        "mask_count_follows_schedule": bool((masks == torch.tensor(expected_masks(config))[:, None]).all()),
    }


# --- the report ------------------------------------------------------------------------------------------------------

def run(options: ReportOptions) -> dict[str, Any]:
    """Measure and write everything into options.output; returns the report."""
    pyplot()        # what is missing is said before the work
    check_empty(Path(options.output))
    engine = Engine("llada_ups", pretrained=options.pretrained, ups=options.ups, device=options.device, dtype=options.dtype)
    if engine.prepared.policy is None:
        raise ValueError(f"{engine.folder} has no policy head beside it: pass --ups FOLDER of one that training.remask_sft made")
    problems = load_problems(options, engine)
    configs = samplers(options, problems)
    for config in configs.values():
        check_policy(config, engine.prepared)
    detection = {kind: detection_report(detect(engine, problems, noise, options))
                 for kind, noise in noises(engine, problems, options).items()}
    decoding, trajectories = decoding_report(engine, problems, configs, options)
    report = {"model": engine.info(), "num_problems": len(problems), "batch_size": options.batch_size, "device": str(engine.model.device),
              "detection": detection, "decoding": decoding, "options": dataclasses.asdict(options)}
    with whole_folder(Path(options.output)) as folder:
        (folder / "ups_report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        shown = "\n\n".join("\n\n".join([f"== {source}", *texts]) for source, texts in trajectories.items())
        (folder / "trajectories.txt").write_text(shown + "\n", encoding="utf-8")
        draw(report, folder)
    return report


def table(report: Mapping[str, Any]) -> str:
    """The report's main numbers as Markdown."""
    detection = [[kind, found["num_visible"], found["num_incorrect"], f"{found['auc']['policy']:.3f}", f"{found['auc']['tps_prob']:.3f}",
                  f"{found['calibration_error']['policy']:.3f}", f"{found['confusion']['tn']} / {found['confusion']['fn']}"]
                 for kind, found in report["detection"].items()]
    decoding = [[source, f"{found['accuracy']:.3f}", f"{found['mean_forwards']:.2f}", f"{found['milliseconds_per_step_and_batch']:.1f}",
                 found["masked_again"], found["corrected_in_right_answers"],
                 "yes" if found["mask_count_follows_schedule"] and found["mask_count_never_rises"] else "NO"]
                for source, found in report["decoding"].items()]
    return "\n\n".join([
        markdown(["incorrect tokens", "visible", "incorrect", "AUC policy", "AUC tps_prob", "calibration error",
                  "doubted: incorrect / clean"], detection),
        markdown(["source", "accuracy", "forwards", "ms a step and batch", "masked again", "corrected (right answers)",
                  "mask count as scheduled"],
                 decoding)])


def _batches(problems: Sequence[Problem], size: int) -> Iterator[Sequence[Problem]]:
    for first in range(0, len(problems), size):
        yield problems[first:first + size]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(ReportOptions, "python -m llada_plugins.ups_report", lambda options: table(run(options)), argv)


if __name__ == "__main__":
    sys.exit(main())
