"""Routed seeds (ALA): prompt-conditioned embeddings at masked positions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llada_plugins.diffusion.denoiser import model_denoiser
from llada_plugins.options.fields import arg

from .loading import Loading
from .prepared import Prepared, own_policy
from .router import load_router
from .routing import routed


@dataclass(frozen=True, kw_only=True)
class ALAOptions:
    """Where the router comes from."""

    router: str | None = arg(
        None,
        "folder of a router made by training.router_sft (default: 'router' in the checkpoint's "
        "folder, if it is there)",
    )


def routed_seeds(load: Loading, folder: Path, options: ALAOptions) -> Prepared:
    """ALA: prompt-conditioned seeds instead of one static mask embedding.

    All sampler options are as for the baseline.
    """
    place = Path(options.router).expanduser() if options.router else folder / "router"
    if not place.is_dir():
        raise FileNotFoundError(
            f"llada_ala needs a router: {place} is not a folder; pass router=FOLDER, made by "
            "python -m training.router_sft"
        )
    model = load()
    if model.special_tokens is None:
        raise ValueError(f"{folder}: llada_ala needs a checkpoint that names its mask token")
    router = load_router(place, model)
    mask_id = model.special_tokens.mask
    denoise = routed(model_denoiser(model), router, model.embedding, mask_id, model.blocks)
    return Prepared(model, denoise, own_policy(model), max_answer=router.config.max_positions)
