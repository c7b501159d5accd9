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
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from llada_plugins.files.tensors import save_tensors
from llada_plugins.methods.policy_head import CONFIG, WEIGHTS, PolicyHead, save_policy
from llada_plugins.models.fingerprint import backbone_fingerprint
from llada_plugins.models.initial import empty_like
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.loading import save_model
from llada_plugins.models.lora import merged_weight
from llada_plugins.reports.metrics import auc, expected_calibration_error
from training.loop import objectives
from training.loop.objectives import IGNORED
from training.loop.random_streams import random_stream
from training.loop.trainer import Save

from .arguments import RunArguments
from .command import Run
from .incorrect_tokens import INCORRECT_FROM
from .jobs import (
    AnswerJob,
    add_metrics,
    answer_job,
    copy_tokenizer,
    load_checkpoint,
    mask_id,
    reading_of,
)
from .lora_adapters import LoRA
from .policy_model import PolicyModel, policy_model
from .presets import UPS_PRESETS
from .remask_options import RemaskOptions

ADAPTER = "adapter.safetensors"  # LoRA's own tensors: what resuming needs beside the merged model
METRICS = {f"eval_{name}" for name in ("loss", "ups_auc", "tps_prob_auc", "ups_bce", "ups_ece")}


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
        random_stream("ups", arguments.seed),
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
        reading=reading_of(model.config),
    )
    return Run(
        job=job.with_model(model),
        objective=objective,
        save=save,
        load=load_remask,
        measure=measure,
        finish=partial(record_metrics, Path(arguments.output_dir)),
    )


# --- metrics --------------------------------------------------------------------------


def measure(predictions: Tensor, labels: Tensor) -> dict[str, float]:
    """Clean against incorrect among visible answer tokens: AUC of h and of the token's probability.

    BCE (nats) and ECE of sigmoid(h).

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
    """Writes the head and, where the backbone trains, a complete checkpoint.

    job.model: the backbone as it was loaded.
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
        load_checkpoint(model.backbone, folder)


def merged(backbone: LLaDA, state: Mapping[str, Tensor], lora: LoRA | None = None) -> LLaDA:
    """The backbone as a plain model of this state, its weights with LoRA's.

    Without adapters, as it is.
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
    """Add the last evaluation's metrics to the head's config, or to the checkpoint's.

    It is the head's wherever the folder has one.
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
