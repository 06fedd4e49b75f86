"""One decoder for every supported family, and the table that moves its weights from and to Hugging Face files.

Models know nothing of preferences, goals or data.
"""
