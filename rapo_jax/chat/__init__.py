"""Messages become text and text becomes tokens; the goal is written here and nowhere else."""
