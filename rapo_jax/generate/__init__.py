"""Prompts in, continuations out: batched sampling with a key/value cache from an opened model."""
