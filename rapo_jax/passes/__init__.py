"""Forward passes over data sets, written down as they go: (model, groups, options) -> a column of numbers."""
