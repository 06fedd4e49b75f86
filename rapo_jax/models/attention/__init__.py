"""Attention over rows with shared prompts: one rule of what sees what (layout), one kernel per kind of hardware."""
