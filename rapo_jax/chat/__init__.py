"""Messages -> text -> tokens, and the goal prompt, the only place that writes goals."""
