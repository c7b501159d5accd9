"""What router training trains and writes: an ALA router before a frozen backbone.

Nothing of the backbone is written.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llada_plugins.methods.router import CONFIG, WEIGHTS, Router, RouterConfig, save_router
from llada_plugins.methods.routing import RoutedLLaDA
from llada_plugins.models.fingerprint import backbone_fingerprint
from llada_plugins.models.llada import LLaDA
from llada_plugins.options.fields import build
from training.loop import objectives
from training.loop.metrics_log import read_metrics
from training.loop.random_streams import random_stream
from training.loop.trainer import Save

from .arguments import RunArguments
from .command import Run
from .full_attention import check_full_attention
from .jobs import AnswerJob, add_metrics, answer_job, mask_id, reading_of
from .options import RouterOptions
from .presets import ROUTER_PRESETS

ONE_BLOCK = (
    "where one block alone has masks: an ALA router seeds those of a whole answer, train it on a "
    "model with full attention"
)


def prepare(options: RouterOptions, arguments: RunArguments, command: Sequence[str]) -> Run:
    """The run that `python -m training.router_sft` was asked for."""
    if options.model is not None:
        check_full_attention(options.model, options.attention, ONE_BLOCK)
    job = answer_job(options, arguments, ROUTER_PRESETS)
    config = router_config(options, job.model)
    model = routed_model(job, config, random_stream("router", arguments.seed))
    # the loss before training
    arguments.eval_on_start = job.evaluation is not None and not arguments.resume
    folder = Path(arguments.output_dir)
    return Run(
        job=job.with_model(model),
        objective=objectives.routed_sft(model.mask_id, reading_of(model.config)),
        save=save_routed(job.model, command),
        load=load_routed,
        finish=lambda metrics: record_metrics(folder),
    )


def router_config(options: RouterOptions, model: LLaDA) -> RouterConfig:
    """The shape that router_sft's options ask for, for this model.

    Raises ValueError where no router has it.
    """
    mask_embedding = model.embedding(torch.tensor([mask_id(model.config)])).detach()  # (1, D)
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


def routed_model(job: AnswerJob, config: RouterConfig, generator: torch.Generator) -> RoutedLLaDA:
    """The job's model, frozen, after a new router.

    Raises ValueError where an answer is longer than the router reaches.
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
        model = RoutedLLaDA(job.model, Router(config), mask_id(job.model.config))
    # nothing reads them, and DDP waits for the gradient of whatever asks for one
    if not config.use_prompt:
        router = model.router
        unread: list[nn.Module] = [router.prompt_position, router.prompt_norm]
        unread += [layer.get_submodule("norm") for layer in router.stack]
        for module in unread:
            module.requires_grad_(False)
    return model


def save_routed(backbone: LLaDA, command: Sequence[str]) -> Save:
    """Writes the router alone, which `router=FOLDER` loads.

    backbone: the model that it is trained on.
    """
    fingerprint = backbone_fingerprint(backbone)

    def save(model: nn.Module, folder: Path, state: Mapping[str, Tensor] | None) -> None:
        assert isinstance(model, RoutedLLaDA)
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


def load_routed(model: nn.Module, folder: Path) -> None:
    """Fill the router from a folder that `save_routed` wrote."""
    assert isinstance(model, RoutedLLaDA)
    model.router.load_state_dict(load_file(folder / WEIGHTS))


def record_metrics(folder: Path) -> None:
    """Add the evaluation losses before and after training to the router's config."""
    losses = [row["eval_loss"] for row in read_metrics(folder) if "eval_loss" in row]
    if losses:
        add_metrics(folder / CONFIG, {"eval_loss_before": losses[0], "eval_loss": losses[-1]})
