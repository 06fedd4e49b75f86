"""One decoder for every supported family, and the table that maps its weights to Hugging Face files and back.

Models know nothing of preferences, goals or data.
"""
