"""Forward passes over data sets, saved as they go: (model, groups, options) -> a column of numbers."""
