"""What router training trains and writes: an ALA router before a frozen backbone;
nothing of the backbone is written.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llada_plugins.methods.router import (
    CONFIG,
    WEIGHTS,
    RoutedLLaDA,
    Router,
    RouterConfig,
    save_router,
)
from llada_plugins.models.fingerprint import backbone_fingerprint
from llada_plugins.models.llada import LLaDA
from llada_plugins.options.fields import build
from training.loop.trainer import METRICS, Save

from .jobs import Job


def router_config(options: Any, model: LLaDA) -> RouterConfig:
    """The shape that router_sft's options ask for, for this model; raises ValueError
    where no router has it.
    """
    mask_embedding = model.embedding(torch.tensor([model.config.mask_token_id])).detach()
    scale = float(mask_embedding.square().mean().sqrt()) if options.router_scaled else 1.0
    return build(
        RouterConfig,
        dict(
            d_model=model.config.d_model,
            mode=options.router_mode,
            layers=options.router_layers,
            heads=options.router_heads,
            mlp=options.router_mlp,
            max_positions=options.max_positions,
            use_prompt=not options.no_prompt,
            blocks=options.router_blocks,
            scale=scale,
        ),
    )


def routed_model(job: Job, config: RouterConfig, generator: torch.Generator) -> RoutedLLaDA:
    """The job's model, frozen, behind a new router; raises ValueError where an answer
    is longer than the router reaches.
    """
    longest = max(
        len(example.input_ids) - example.prompt_length
        for example in chain(job.train, job.evaluation or ())
    )
    if longest > config.max_positions:
        raise ValueError(
            f"--max_positions {config.max_positions} is shorter than the longest answer "
            f"({longest} tokens)"
        )
    # torch's modules draw their weights from the global state alone
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        model = RoutedLLaDA(job.model, Router(config), job.model.config.mask_token_id)
    # nothing reads them, and DDP waits for the gradient of whatever asks for one
    if not config.use_prompt:
        for part in (
            model.router.prompt_position,
            model.router.prompt_norm,
            *(layer.norm for layer in model.router.stack),
        ):
            part.requires_grad_(False)
    return model


def save_routed(backbone: nn.Module, command: Sequence[str]) -> Save:
    """Writes the router alone, which `router=FOLDER` loads; backbone: the model that it
    is trained on.
    """
    fingerprint = backbone_fingerprint(backbone)

    def save(model: RoutedLLaDA, folder: Path, state: Mapping[str, Tensor] | None) -> None:
        router = model.router
        if state is not None:
            router = Router(model.router.config)
            router.load_state_dict(
                {
                    name.removeprefix("router."): tensor
                    for name, tensor in state.items()
                    if name.startswith("router.")
                }
            )
        save_router(router, folder, fingerprint, {"training": {"command": shlex.join(command)}})

    return save


def load_routed(model: RoutedLLaDA, folder: Path) -> None:
    """Fill the router from a folder that `save_routed` wrote."""
    model.router.load_state_dict(load_file(folder / WEIGHTS))


def record_metrics(folder: Path) -> None:
    """Add the first and the last evaluation loss of the run, before and after training,
    to the router's config.
    """
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    losses = [loss for line in lines if (loss := json.loads(line).get("eval_loss")) is not None]
    if losses:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        config["training"]["metrics"] = {"eval_loss_before": losses[0], "eval_loss": losses[-1]}
        (folder / CONFIG).write_text(
            json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )
