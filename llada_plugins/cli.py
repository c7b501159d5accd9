"""The stock lm_eval command with this package's model names.

It knows them also where Python's start-up files are not read.

llada-eval --model llada --tasks gsm8k …
python -m llada_plugins.cli --model llada --tasks gsm8k …        (after `pip install --target`)
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution

from ._lm_eval_hook import DISTRIBUTION, register

DOCTOR = "python -m llada_plugins.doctor says what else is wrong, and what to do"


def main() -> None:
    """Register the names and hand the command line to lm_eval.

    Where one of the two cannot be, it ends with one line and status 1.
    """
    try:
        distribution(DISTRIBUTION)  # whose entry points are the names
    except PackageNotFoundError:
        sys.exit(
            "error: llada-plugins is imported, but not installed, so lm_eval cannot know its "
            f"models: pip install it; {DOCTOR}"
        )
    try:
        # first, since it fills the registry with lm-eval's own models
        import lm_eval.models  # noqa: F401
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "lm_eval"
        reason = "is not installed" if absent else f"cannot be imported: {error}"
        sys.exit(f"error: lm-eval {reason}: pip install 'llada-plugins[lmeval]'; {DOCTOR}")

    register()
    cli_evaluate()


if __name__ == "__main__":
    main()
