"""A world small enough to learn on two CPU cores in minutes, to watch the method work end to end.

No other room imports it: it only writes files that look like any user's data and model.
"""
