"""`python -m rapo_jax` is `rapo`."""

from rapo_jax.cli import main

main()
