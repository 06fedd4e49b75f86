"""The harness's own command line, with the model `rapo` known to it:

python -m rapo_jax.evaluate.harness run --model rapo --model_args path=DIR,goal=8 --tasks arc_easy --apply_chat_template
"""

import sys

from rapo_jax.errors import UserError


def main() -> None:
    """Registers the model, then does as `lm_eval`."""
    try:
        from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports] (an extra)

        import rapo_jax.evaluate.harness.model  # noqa: F401
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        sys.exit("lm_eval is not installed: pip install 'rapo_jax[lm_eval]'.")
    try:
        cli_evaluate()
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
