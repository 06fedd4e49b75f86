"""Prompts in, continuations out: a key/value cache, sampling, and stopping where the checkpoint says."""
