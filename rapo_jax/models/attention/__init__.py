"""Attention over rows with shared prompts: one rule of who sees whom (layout), one kernel per kind of hardware."""
