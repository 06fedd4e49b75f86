"""Harnesses that break things on purpose, to be run by hand: `python -m tests.chaos.kills`, `.disagree`, `.full_disk`."""
