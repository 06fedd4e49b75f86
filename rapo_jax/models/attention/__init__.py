"""Attention over shared-prompt rows: one rule for what each token sees, and one kernel for each kind of hardware."""
