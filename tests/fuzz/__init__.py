"""Hostile inputs at every border: each is accepted or refused with one message, in bounded time and memory.

A slice runs in the suite (test_fuzz.py). By hand, with a table of what happened:

    python -m tests.fuzz --examples 20000

To add a border: one entry in the table of its module (rows.py, models.py, records.py, configurations.py), with a strategy of files
and the function that reads them.
"""
