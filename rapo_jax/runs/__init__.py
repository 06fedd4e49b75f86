"""One training run: set up, identified, announced, trained. The loop itself is rapo_jax/train/loop.py."""
