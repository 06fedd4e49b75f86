"""Files -> records -> goal-conditioned preferences. Knows no tokens, models, devices or losses."""
