"""Responses in, numbers out."""
