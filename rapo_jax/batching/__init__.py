"""Tokenized preferences -> groups -> the batch plan -> arrays."""
