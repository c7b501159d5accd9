"""Router training: an ALA router before a frozen backbone, with LLaDA's SFT objective.

`router=OUTPUT_DIR` loads the result. --no_prompt trains the control.

    python -m training.router_sft --preset nim_router --output_dir outputs/nim_router
    python -m training.router_sft --model DIR --data FILE.jsonl --output_dir DIR [--no_prompt]
    torchrun --nproc_per_node 2 -m training.router_sft …
"""

from __future__ import annotations

from collections.abc import Sequence

from training.runs import launch
from training.runs.command import Command
from training.runs.options import RouterOptions
from training.runs.presets import ROUTER_PRESETS
from training.runs.router_run import prepare

COMMAND = Command(
    name="router_sft",
    options=RouterOptions,
    presets=ROUTER_PRESETS,
    prepare=prepare,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    launch.main(COMMAND, argv)


if __name__ == "__main__":
    main()
