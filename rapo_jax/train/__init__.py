"""From batches to a better policy: optimizer, state, step, reference, metrics, loop. Never imports data."""
