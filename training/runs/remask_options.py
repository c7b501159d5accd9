"""Options of Remask SFT."""

from __future__ import annotations

from dataclasses import dataclass

from llada_plugins.options.fields import arg

from .incorrect_tokens import INCORRECT_FROM
from .lora_adapters import LoRAOptions
from .options import SFTOptions
from .presets import UPS_PRESETS


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
        "ones), never the clean token; or samples (the model's own; one that equals the clean "
        "token is clean)",
    )
    lambda_ups: float = arg(
        1.0,
        "weight of the head's loss beside the backbone's; RemeDi, which trains jointly, has 0.3. "
        "Alone it only scales the gradient, before clipping",
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
