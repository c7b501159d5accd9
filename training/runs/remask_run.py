"""What Remask SFT trains and writes: a light UPS head, and perhaps its backbone.

The backbone is frozen, trained whole, or adapted by LoRA.

A RemeDi checkpoint has a policy stream of its own, which is trained in the head's
place, with the backbone.

Output folders. Every run leaves `ups_config.json` and `ups.safetensors` in the folder
itself, so `ups=FOLDER` loads any of them. A run that changes the backbone leaves a
complete checkpoint beside them, adapters merged, with the head once more in `ups/`,
where `pretrained=FOLDER` looks for it by default. A stream of the checkpoint's own is
part of it, and there is no head.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from llada_plugins.diffusion.forward_process import Replace, another_of
from llada_plugins.files.tensors import save_tensors
from llada_plugins.methods.policy_head import CONFIG, WEIGHTS, PolicyHead, save_policy
from llada_plugins.models.fingerprint import backbone_fingerprint
from llada_plugins.models.layer import ActivationCheckpointing
from llada_plugins.models.llada import LLaDA, empty_like
from llada_plugins.models.loading import save_model
from llada_plugins.models.lora import merged_weight
from llada_plugins.models.tokenizer import load_tokenizer
from llada_plugins.options.fields import arg
from llada_plugins.reports.metrics import auc, expected_calibration_error
from training.loop import objectives
from training.loop.objectives import IGNORED
from training.loop.trainer import Save, noise

from .arguments import RunArguments
from .command import Run
from .jobs import AnswerJob, add_metrics, answer_job, copy_tokenizer, mask_id
from .lora_adapters import LoRA, LoRAOptions, add_lora
from .options import SFTOptions
from .presets import UPS_PRESETS

ADAPTER = "adapter.safetensors"  # LoRA's own tensors: what resuming needs beside the merged model
METRICS = {f"eval_{name}" for name in ("loss", "ups_auc", "tps_prob_auc", "ups_bce", "ups_ece")}


@dataclass(frozen=True, kw_only=True)
class RemaskOptions(LoRAOptions, SFTOptions):
    """What is trained on what, and with which noise."""

    preset: str | None = arg(
        None,
        f"a head with its backbone and data: {', '.join(UPS_PRESETS)}; it sets the other flags' "
        "defaults",
    )
    ups_width: int = arg(128, "hidden units of the head; 0 = one linear map")
    r_incorrect: float = arg(
        0.1,
        "r: an unmasked answer token turns incorrect with probability 4 r t (1 - t), t the mask "
        "noise; 0-1",
    )
    incorrect_from: str = arg(
        "answers",
        "incorrect tokens: answers (ids of the data's answers) or vocabulary (all but special "
        "ones), "
        "never the clean token; or samples (the model's own; one that equals the clean token is "
        "clean)",
    )
    lambda_ups: float = arg(
        1.0,
        "weight of the head's loss beside the backbone's; RemeDi, which trains jointly, has 0.3. "
        "Alone it "
        "only scales the gradient, before clipping",
    )
    label_smoothing: float = arg(
        0.0, "the head's labels y become s + (1 - 2 s) y; RemeDi has s = 0.05; below 0.5"
    )
    joint: bool = arg(False, "train the backbone as well; output_dir is then a complete checkpoint")
    lora: bool = arg(
        False,
        "train LoRA adapters of the backbone's blocks as well; they are merged into the checkpoint",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ups_width < 0:
            raise ValueError(f"--ups_width must be 0 or more hidden units, got {self.ups_width}")
        if not 0 <= self.r_incorrect <= 1:
            raise ValueError(f"--r_incorrect must be between 0 and 1, got {self.r_incorrect}")
        if self.incorrect_from not in INCORRECT_FROM:
            raise ValueError(
                f"--incorrect_from must be one of {', '.join(INCORRECT_FROM)}, got "
                f"{self.incorrect_from!r}"
            )
        if not self.lambda_ups > 0 or self.lambda_ups == float("inf"):
            raise ValueError(f"--lambda_ups must be above 0, got {self.lambda_ups}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"--label_smoothing must be at least 0 and below 0.5, got {self.label_smoothing}"
            )
        if self.joint and self.lora:
            raise ValueError("--joint trains the whole backbone, --lora adapters of it: give one")

    @property
    def freezes(self) -> bool:
        return not self.joint


def prepare(options: RemaskOptions, arguments: RunArguments, command: Sequence[str]) -> Run:
    """The run that `python -m training.remask_sft` was asked for."""
    job = answer_job(options, arguments, UPS_PRESETS)
    incorrect = INCORRECT_FROM[options.incorrect_from](job)
    description = {
        "backbone": options.model or UPS_PRESETS[str(options.preset)].model,
        "command": shlex.join(command),
        "options": asdict(options),
    }
    save = save_remask(job, {"training": description}, options.adapters)
    model = policy_model(
        job.model,
        options.ups_width,
        noise("ups", arguments.seed),
        joint=options.joint,
        lora=options.adapters,
    )
    objective = objectives.remask_sft(
        mask_id(model.config),
        r_incorrect=options.r_incorrect,
        lambda_ups=options.lambda_ups,
        label_smoothing=options.label_smoothing,
        train_backbone=not model.frozen,
        incorrect=incorrect,
    )
    return Run(
        job=job.with_model(model),
        objective=objective,
        save=save,
        load=load_remask,
        measure=measure,
        finish=partial(record_metrics, Path(arguments.output_dir)),
    )


class PolicyOutput(NamedTuple):
    """What Remask SFT needs of a forward pass."""

    logits: Tensor  # (N, V) at the N positions asked for
    score: Tensor  # (B, L) raw score h of every position, fp32


class PolicyModel(ActivationCheckpointing):
    """A backbone with a light head; a frozen backbone runs without a graph, so that
    training costs little more than its forward.
    """

    def __init__(self, backbone: LLaDA, head: PolicyHead | None) -> None:
        """head: None where the backbone's own stream takes its place."""
        super().__init__()
        self.backbone, self.head, self.config = backbone, head, backbone.config
        self.frozen = not any(parameter.requires_grad for parameter in backbone.parameters())

    def forward(self, tokens: Tensor, at: Tensor) -> PolicyOutput:
        """Logits at `at` (B, L), bool, and scores everywhere, of tokens (B, L)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            hidden, score = self.backbone.streams(tokens)  # (B, L, D), (B, L) or None
            logits = self.backbone.head(hidden[at])
        if self.head is not None:
            score = self.head(hidden)
        assert score is not None  # a backbone without a head has a stream of its own
        return PolicyOutput(logits, score)


def policy_model(
    backbone: LLaDA,
    width: int,
    generator: torch.Generator,
    *,
    joint: bool = False,
    lora: LoRA | None = None,
) -> PolicyModel:
    """The backbone, frozen unless joint or lora is given, with a head of `width` hidden
    units; changes the backbone in place.

    A backbone with a policy stream of its own gets no head: ValueError unless joint is given.
    """
    backbone.requires_grad_(joint)
    if backbone.own_stream:
        if not joint:
            raise ValueError(
                "this checkpoint has a policy stream of its own, beside which no head is read: "
                "give --joint, which trains that stream with the backbone"
            )
        return PolicyModel(backbone, None)
    head = PolicyHead(backbone.config.d_model, width)
    with torch.no_grad():  # as torch initialises them, but from the generator
        for parameter in head.parameters():
            fan_in = parameter.shape[1] if parameter.dim() == 2 else width or head.d_model
            parameter.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
    if lora is not None:
        add_lora(backbone, lora, generator)
    return PolicyModel(backbone, head)


# --- where incorrect tokens come from -------------------------------------------------


def answer_tokens(job: AnswerJob) -> list[int]:
    """Ids that occur in the training data's answers."""
    found: set[int] = set()
    for example in job.train:
        found.update(example.input_ids[example.prompt_length :])
    return sorted(found)


def ordinary_tokens(job: AnswerJob) -> list[int]:
    """The tokenizer's ids that the model knows, without special tokens."""
    tokenizer = load_tokenizer(job.tokenizer_folder)
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return [
        token
        for token in range(min(len(tokenizer), job.model.config.vocab_size))
        if token not in special
    ]


# from the job, before training, to what gives each batch's replacements, given the model
Source = Callable[[AnswerJob], Callable[[nn.Module], Replace]]


def _alphabet(ids: Callable[[AnswerJob], list[int]]) -> Source:
    def source(job: AnswerJob) -> Callable[[nn.Module], Replace]:
        found = [token for token in ids(job) if token != job.model.config.mask_token_id]
        if len(found) < 2:
            raise ValueError(
                f"--incorrect_from answers: the answers hold {len(found)} different tokens, "
                "incorrect ones need at least 2"
            )
        replace = another_of(torch.tensor(found))
        return lambda model: replace

    return source


def _samples(job: AnswerJob) -> Callable[[nn.Module], Replace]:
    """The model's own samples, drawn at the chosen positions at once, all masked: the
    errors that parallel decoding makes.
    """
    mask_token = mask_id(job.model.config)

    def source(model: nn.Module) -> Replace:
        def replace(
            noisy: Tensor, chosen: Tensor, tokens: Tensor, generator: torch.Generator
        ) -> Tensor:
            with torch.no_grad():
                logits = model(noisy.masked_fill(chosen, mask_token), chosen).logits  # (N, V)
            logits = logits.double()
            logits[:, mask_token] = -torch.inf
            cumulative = logits.softmax(-1).cumsum(-1)
            draw = torch.rand(
                len(logits), 1, generator=generator, device=generator.device, dtype=torch.float64
            )
            found = torch.searchsorted(
                cumulative, draw.to(logits.device) * cumulative[:, -1:], right=True
            )
            return found[:, 0].clamp(max=logits.shape[-1] - 1)

        return replace

    return source


INCORRECT_FROM: dict[str, Source] = {
    "answers": _alphabet(answer_tokens),
    "vocabulary": _alphabet(ordinary_tokens),
    "samples": _samples,
}


# --- metrics --------------------------------------------------------------------------


def measure(predictions: Tensor, labels: Tensor) -> dict[str, float]:
    """Clean against incorrect among visible answer tokens: AUC of h and of the token's
    probability; BCE (nats) and ECE of sigmoid(h).

    predictions: (B, L, 2) h and probability. labels: (B, L) 1 clean, 0 incorrect, else
    IGNORED. An AUC that does not exist is left out.
    """
    visible = labels != IGNORED
    clean = labels[visible] == 1
    score, probability = predictions[visible].double().unbind(-1)
    if not len(score):
        return {}
    found = {
        "ups_auc": auc(score, clean),
        "tps_prob_auc": auc(probability, clean),
        "ups_bce": float(F.binary_cross_entropy_with_logits(score, clean.double())),
        "ups_ece": expected_calibration_error(score.sigmoid(), clean),
        "incorrect_share": float((~clean).double().mean()),
    }
    return {name: value for name, value in found.items() if value == value}  # NaN is not JSON


# --- output folders -------------------------------------------------------------------


def save_remask(job: AnswerJob, extra_config: Mapping[str, Any], lora: LoRA | None = None) -> Save:
    """Writes the head and, where the backbone trains, a complete checkpoint; job.model:
    the backbone as it was loaded.
    """
    fingerprint = backbone_fingerprint(job.model)

    def save(model: nn.Module, folder: Path, state: Mapping[str, Tensor] | None) -> None:
        assert isinstance(model, PolicyModel)
        state = model.state_dict() if state is None else state
        head = None
        if model.head is not None:
            head = PolicyHead(model.head.d_model, model.head.width)
            head.load_state_dict(_under(state, "head."))
        if model.frozen:
            assert head is not None  # else nothing would train
            save_policy(head, folder, fingerprint, extra_config)
            return
        backbone = merged(model.backbone, _under(state, "backbone."), lora)
        save_model(backbone, folder, extra_config)
        copy_tokenizer(job.tokenizer_folder, folder)
        adapter = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in state.items()
            if ".lora_" in name
        }
        if adapter:
            save_tensors(adapter, folder / ADAPTER)
        if head is not None:
            for place in (folder, folder / "ups"):
                save_policy(head, place, backbone_fingerprint(backbone), extra_config)

    return save


def load_remask(model: nn.Module, folder: Path) -> None:
    """Fill what trains from a folder that `save_remask` wrote."""
    assert isinstance(model, PolicyModel)
    if model.head is not None:
        model.head.load_state_dict(load_file(folder / WEIGHTS))
    if (folder / ADAPTER).is_file():
        model.load_state_dict(load_file(folder / ADAPTER), strict=False)
    elif not model.frozen:
        model.backbone.load_state_dict(load_file(folder / "model.safetensors"))


def merged(backbone: LLaDA, state: Mapping[str, Tensor], lora: LoRA | None = None) -> LLaDA:
    """The backbone as a plain model of this state, its weights with LoRA's; without
    adapters, as it is.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        layer, adapted, kind = name.partition(".base_layer.")
        if adapted and kind == "weight":
            assert lora is not None
            tensor = merged_weight(
                tensor,
                state[f"{layer}.lora_A.default.weight"],
                state[f"{layer}.lora_B.default.weight"],
                lora.scale,
            )
        if ".lora_" not in name:
            plain[f"{layer}.{kind}" if adapted else name] = tensor
    model = empty_like(backbone)
    model.load_state_dict(plain, assign=True)
    return model


def record_metrics(folder: Path, metrics: Mapping[str, float]) -> None:
    """Add the last evaluation's metrics to the head's config, wherever the folder has
    one, or to the checkpoint's.
    """
    of_head = [path for path in (folder / CONFIG, folder / "ups" / CONFIG) if path.is_file()]
    for path in of_head or [folder / "config.json"]:
        add_metrics(path, {name: value for name, value in metrics.items() if name in METRICS})


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor.detach()
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
