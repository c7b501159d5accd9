"""The stock lm_eval command with this package's model names, also where start-up files are not read.

    llada-eval --model llada --tasks gsm8k …
    python -m llada_plugins.cli --model llada --tasks gsm8k …        (after `pip install --target`)
"""
from __future__ import annotations

from ._lm_eval_hook import register


def main() -> None:
    """Register the names and hand the command line to lm_eval."""
    try:
        import lm_eval.models  # noqa: F401  (fills the registry with lm-eval's own models, which must come first)
    except ModuleNotFoundError as error:
        if error.name != "lm_eval":
            raise
        raise ImportError("llada-eval needs lm-eval: pip install 'llada-plugins[lmeval]'") from error
    from lm_eval.__main__ import cli_evaluate

    register()
    cli_evaluate()


if __name__ == "__main__":
    main()
