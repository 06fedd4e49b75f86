"""The suite `goals`: answers at chosen goals, sampled, scored, and compared with what was asked for."""
