"""A world small enough to learn on two CPU cores in minutes, so that a reader can watch the method work end to end.

Nothing outside this package imports it: it only writes files that look like anybody's data and anybody's model.
"""
