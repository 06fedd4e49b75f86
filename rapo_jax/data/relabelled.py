"""Records -> goal-conditioned preferences: the rule of rapo_jax/relabel.py applied as configured, without tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rapo_jax.config.tree import Config
from rapo_jax.data.draws import prompt_share
from rapo_jax.data.row_needs import responses_wanted
from rapo_jax.errors import UserError
from rapo_jax.messages import Message, Record
from rapo_jax.relabel import (
    NO_LIMITS,
    Goal,
    GoalOf,
    Preference,
    goal_direction,
    goal_reward,
    order_along,
    relabel,
    reward_along,
    within_limits,
)


@dataclass(frozen=True)
class Relabelled:
    """A record with one of its preferences.

    `responses`, `rewards` and `labels` (which responses are desirable under this goal; None for objectives that read none)
    follow the preference's order. Unknown rewards are NaN.
    """

    record: Record
    preference: Preference
    labels: tuple[bool, ...] | None = None

    @property
    def responses(self) -> tuple[str, ...]:
        return tuple(self.record.responses[i] for i in self.preference.order)

    @property
    def answers(self) -> tuple[Message, ...]:
        """The responses as turns."""
        return tuple(self.record.answers[i] for i in self.preference.order)

    @property
    def more(self) -> tuple[str, ...]:
        """What each response holds besides its text; () where none does."""
        return tuple(self.record.more[i] for i in self.preference.order) if self.record.more else ()

    @property
    def rewards(self) -> tuple[float, ...]:
        rewards = self.record.rewards
        return tuple(math.nan if rewards is None else rewards[i] for i in self.preference.order)

    @property
    def weight(self) -> float:
        return self.record.weight


def best_goal_of(config: Config) -> Goal | None:
    """The goal of Algorithm 1's regularizer; None where the objective has no such term, or there are no goals."""
    return highest_goal(config) if config.objective.best_goal_weight and config.relabel.goals else None


def relabel_records(records: Sequence[Record], config: Config) -> tuple[list[Relabelled], int]:
    """All preferences of all records in order, and the number of tied records dropped.

    Raises UserError where Algorithm 1's regularizer is configured and no record has a chosen response for it.
    """
    relabelled, num_ties, want = [], 0, responses_wanted(config)
    for record in records:
        found = relabel_labelled(record, config) if want == "labelled" else relabel_record(record, config)
        num_ties += not found and is_tie(record, config)
        relabelled += found
    if relabelled and best_goal_of(config) is not None and all(r.preference.goal_of != "best" for r in relabelled):
        raise UserError(
            f"objective.best_goal_weight={config.objective.best_goal_weight} is of the responses that were chosen over "
            "others, and this data has none; remove it."
        )
    return relabelled, num_ties


def relabel_record(record: Record, config: Config) -> list[Relabelled]:
    return [Relabelled(record, preference) for preference in preferences_of(record, config)]


def relabel_labelled(record: Record, config: Config) -> list[Relabelled]:
    """Preferences with labels. In a pair, the response preferred under a goal is desirable; data.pairs=each splits the pair.

    A desirable response is desirable at its own reward. An undesirable one is desirable at its own reward and undesirable
    at the highest goal; where the two are equal it is a tie. Without goals the source's labels are kept.
    """
    if len(record.responses) > 1:
        pairs = [Relabelled(record, p, (True, False)[: len(p.order)]) for p in preferences_of(record, config)]
        return [one for pair in pairs for one in apart(pair)] if config.data.pairs == "each" else pairs
    goals, (label,) = config.relabel.goals, record.labels or (True,)
    if not goals:
        return [Relabelled(record, Preference(goal=None, goal_of=None, order=(0,)), (label,))]
    if is_tie(record, config):
        return []
    (own,) = required_rewards(record, config)
    goal_and_label: dict[GoalOf, tuple[Goal, bool]] = {
        "chosen": (own, True) if label else (highest_goal(config), False),
        "rejected": (own, True),
    }
    relabelled = []
    for side in goals:
        if side == "rejected" and label:
            continue
        goal, desirable = goal_and_label[side]
        relabelled.append(Relabelled(record, Preference(goal=goal, goal_of=side, order=(0,)), (desirable,)))
    return relabelled


def apart(relabelled: Relabelled) -> list[Relabelled]:
    """One Relabelled per response, each with its label."""
    preference = relabelled.preference
    return [
        replace(relabelled, preference=replace(preference, order=(index,)), labels=(label,))
        for index, label in zip(preference.order, relabelled.labels or (), strict=True)
    ]


def highest_goal(config: Config) -> Goal:
    """relabel.goal_max, repeated for every attribute if there are any."""
    names = config.relabel.attributes
    return (config.relabel.goal_max,) * len(names) if names else config.relabel.goal_max


def goal_rewards(record: Record, config: Config) -> Sequence[Goal] | None:
    """What goals are compared with: each response's reward, or its attributes that relabel.attributes names."""
    names = config.relabel.attributes
    if not names or not config.relabel.goals:
        return record.rewards
    return [tuple(each[name] for name in names) for each in record.attributes or ()]


def required_rewards(record: Record, config: Config) -> Sequence[Goal]:
    """`goal_rewards` where there are goals: records without rewards were refused when they were read."""
    rewards = goal_rewards(record, config)
    assert rewards is not None
    return rewards


def rewards_under_goal(relabelled: Relabelled, config: Config) -> tuple[float, ...]:
    """The rewards that objectives read, in preference order: R(x, y, g), along a direction, or without a goal r."""
    goal, rewards = relabelled.preference.goal, goal_rewards(relabelled.record, config)
    if goal is None or rewards is None:
        return relabelled.rewards
    under_goal = reward_along if config.relabel.goal_kind == "directions" else goal_reward
    return tuple(under_goal(goal, rewards[index]) for index in relabelled.preference.order)


def preferences_of(record: Record, config: Config) -> list[Preference]:
    """A single response is preferred at its own reward, or without a goal; several follow the paper's rule."""
    options, rewards = config.relabel, goal_rewards(record, config)
    if options.goals and options.goal_kind == "directions":
        return directed_preferences(record, config)
    if len(record.responses) == 1:
        goal = required_rewards(record, config)[0] if options.goals else None
        return [Preference(goal=goal, goal_of="chosen" if options.goals else None, order=(0,))]
    alone = responses_wanted(config) == "any"  # each response is trained on by itself, so a tie is informative too
    found = relabel(
        rewards,
        goals=options.goals,
        ties="keep" if alone else options.ties,
        rejected_goals=rejected_goals(config),
        best_goal=best_goal_of(config),
        num_responses=len(record.responses),
    )
    return found[:1] if alone and is_tie(record, config) else found


def directed_preferences(record: Record, config: Config) -> list[Preference]:
    """A direction drawn for the prompt ranks all responses; pairwise objectives compare the first and the last."""
    goal = goal_direction(prompt_share(record.prompt, seed=config.seed, purpose="direction"))
    order = order_along(goal, required_rewards(record, config)) or (() if len(record.responses) > 1 else (0,))
    want = responses_wanted(config)
    order = order[:1] if want == "one" else (order[0], order[-1]) if order and want in ("pair", "labelled") else order
    return [Preference(goal=goal, goal_of="chosen", order=order)] if order else []


def rejected_goals(config: Config) -> tuple[float, float]:
    limits = config.relabel.rejected_goals
    return (NO_LIMITS[0] if limits.min is None else limits.min, NO_LIMITS[1] if limits.max is None else limits.max)


def is_tie(record: Record, config: Config) -> bool:
    """Whether a record expresses no preference under any goal.

    Several responses tie where their rewards (or attributes) are all equal, a single undesirable one where it has the
    highest reward.
    """
    rewards = goal_rewards(record, config)
    if rewards is not None and record.labels == (False,) and config.relabel.goals:
        return rewards[0] == highest_goal(config)
    directed = config.relabel.goals and config.relabel.goal_kind == "directions"
    if rewards is None or len(rewards) < 2:
        return False
    return not directed_preferences(record, config) if directed else all(reward == rewards[0] for reward in rewards)


def num_limited(records: Sequence[Record], config: Config) -> int:
    """The number of rejected responses whose reward relabel.rejected_goals excludes from the goals."""
    options, limits = config.relabel, rejected_goals(config)
    if "rejected" not in options.goals or options.goal_kind == "directions" or limits == NO_LIMITS:
        return 0
    untied = [required_rewards(r, config) for r in records if len(r.responses) > 1 and not is_tie(r, config)]
    return sum(not within_limits(goal, limits) for goals in untied for goal in goals[1:])
