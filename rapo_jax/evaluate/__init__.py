"""Evaluation of opened models: how the quality of answers follows the requested goal. Callers supply the judge."""
