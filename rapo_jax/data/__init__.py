"""Files -> records -> goal-conditioned preferences. Independent of tokens, models, devices and losses."""
