"""Published benchmarks of open-ended answers: their questions in, answer files in their own formats out, their judges' verdicts in.

The judges themselves are the benchmarks' own programs; none of them is needed here.
"""
