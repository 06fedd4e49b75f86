"""Evaluation of opened models: how answers, and the likelihoods of given responses, follow the requested goal."""
