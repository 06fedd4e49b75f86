"""What an objective needs of every row: how many responses, and whether it needs their scores."""

from dataclasses import dataclass
from typing import Literal, cast

from rapo_jax.config.tree import Config

# Responses of a row, in the order of the values below: the best one, each by itself, two, one or two with labels, all
# (at least two), or all (at least one).
Want = Literal["one", "each", "pair", "labelled", "all", "any"]


@dataclass(frozen=True)
class RowNeeds:
    """`because` says why scores are needed and `instead` how to do without them; both are parts of error messages."""

    want: Want = "pair"
    scores: bool = False
    because: str = "goals come from scores"
    instead: str = "or train without goals by relabel.goals=[]"


def responses_wanted(config: Config) -> Want:
    """How many responses of a row the objective compares. An objective that scores the prompt too (DRO) can use one."""
    wanted = cast(Want, config.objective.responses)
    return "any" if wanted == "all" and config.objective.needs("prompt") else wanted


def rewards_wanted(config: Config) -> bool:
    """Whether every row needs scores."""
    return bool(config.relabel.goals) or config.objective.needs("rewards")


def row_needs_of(config: Config) -> RowNeeds:
    want, scores = responses_wanted(config), rewards_wanted(config)
    want = "each" if want == "one" and config.data.pairs == "each" else want
    if config.relabel.goals:
        return RowNeeds(want, scores)
    because = f"objective.name={config.objective.name} compares scores"
    return RowNeeds(want, scores, because, "or choose another objective")
