"""Academic tasks by lm-evaluation-harness (the extra `lm_eval`), which asks an opened model as it asks its own backends.

scoring.py needs nothing but JAX; model.py is the adapter, and imports the harness.
"""
