"""OpenAI-compatible servers as others ask them: sampling and judging. What is asked, and what a reply means, is not known here."""
