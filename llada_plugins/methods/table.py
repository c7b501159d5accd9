"""The METHODS table: what each model name of the harnesses is made of.

A new method is a function, its options and a row.
A method turns a loaded model into a Denoiser and says which sampler options its users
expect unless they choose others.
"""

from __future__ import annotations

from llada_plugins.rewards.process_reward_model import prm_folder
from llada_plugins.sampling.confidence import POLICY_SOURCES
from llada_plugins.sampling.config import SamplerConfig

from .ala import ALAOptions, routed_seeds
from .prepared import Method, NoOptions, Policy, Prepared, baseline, local_folder
from .prm import PRMOptions, judged_blocks
from .ups import UPSOptions, learned_remasking

METHODS: dict[str, Method] = {
    "llada": Method(NoOptions, baseline, "the checkpoint's own"),
    "llada_ups": Method(UPSOptions, learned_remasking, folders={"ups": local_folder}),
    "llada_ala": Method(
        ALAOptions,
        routed_seeds,
        "the routed model's, not the checkpoint's own",
        folders={"router": local_folder},
    ),
    "llada_prm": Method(PRMOptions, judged_blocks, judges=True, folders={"prm": prm_folder}),
}


def check_policy(sampler: SamplerConfig, prepared: Prepared) -> None:
    """Raise ValueError where the sampler asks for a policy stream to no purpose.

    The model has none, or it could change nothing.
    """
    if sampler.source not in POLICY_SOURCES:
        return
    if prepared.policy is None:
        raise ValueError(
            f"confidence_source={sampler.source!r} needs an unmasking-policy stream, and there is "
            "none: use llada_ups with ups=FOLDER, or a RemeDi checkpoint"
        )
    ranks_visible = sampler.source == "ups" and prepared.policy is Policy.LIGHT_HEAD
    if ranks_visible and not sampler.revises:
        raise ValueError(
            "confidence_source='ups' ranks visible tokens, and with these options none is ever "
            "masked again: set revise=true, or revise_below with an adaptive rule such as threshold"
        )
