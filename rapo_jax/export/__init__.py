"""Exports: a checkpoint as a Hugging Face directory, and relabelled data as a file that TRL reads."""
