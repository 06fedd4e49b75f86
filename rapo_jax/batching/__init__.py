"""Tokenized preferences become groups, groups become the batch plan, and the plan becomes arrays."""
