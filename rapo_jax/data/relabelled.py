"""Records -> what is preferred in them under which goal: the rule of rapo_jax/relabel.py applied to each, as configured.

Knows which objectives compare one response, two, or all; it knows no tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rapo_jax.config.tree import Config
from rapo_jax.data.columns import Want
from rapo_jax.data.draws import prompt_share
from rapo_jax.errors import UserError
from rapo_jax.messages import Record
from rapo_jax.relabel import ANY, Goal, Preference, along, direction, goal_reward, relabel, within

NAN = float("nan")


@dataclass(frozen=True)
class Relabelled:
    """A record with one preference of it; the order decides which response comes first.

    `labels` say, in that order, which response is desirable under this goal; None for objectives that read no labels.
    """

    record: Record
    preference: Preference
    labels: tuple[bool, ...] | None = None

    @property
    def responses(self) -> tuple[str, ...]:
        return tuple(self.record.responses[i] for i in self.preference.order)

    @property
    def rewards(self) -> tuple[float, ...]:
        rewards = self.record.rewards
        return tuple(NAN if rewards is None else rewards[i] for i in self.preference.order)

    @property
    def weight(self) -> float:
        return self.record.weight


def responses_wanted(config: Config) -> Want:
    """How many responses of a row the objective compares. One that scores the prompt too (DRO) needs no second one."""
    wanted = config.objective.responses
    return "any" if wanted == "all" and config.objective.needs("prompt") else wanted


def rewards_wanted(config: Config) -> bool:
    """Whether a row without scores is of no use."""
    return bool(config.relabel.goals) or config.objective.needs("rewards")


def best_goal_of(config: Config) -> Goal | None:
    """The goal of Algorithm 1's additional term; None for objectives without it, and where no goals are asked for."""
    return highest_goal(config) if config.objective.best_goal_weight and config.relabel.goals else None


def relabel_records(records: Sequence[Record], config: Config) -> tuple[list[Relabelled], int]:
    """All preferences of all records in order, and the number of tied records that were dropped.

    Raises UserError where the term of Algorithm 1 is asked for and no record gives it.
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
    """Of a pair, what is preferred under a goal is desirable; data.pairs=each tells it of each response by itself.

    A single desirable response is desirable at its own reward; an undesirable one is so at its own, and undesirable at
    the highest (where these are one it says nothing). Without goals the source's labels stand.
    """
    if len(record.responses) > 1:
        pairs = [Relabelled(record, p, (True, False)[: len(p.order)]) for p in preferences_of(record, config)]
        return [one for pair in pairs for one in apart(pair)] if config.data.pairs == "each" else pairs
    goals, (label,) = config.relabel.goals, record.labels or (True,)
    if not goals:
        return [Relabelled(record, Preference(goal=None, goal_of=None, order=(0,)), (label,))]
    if is_tie(record, config):
        return []
    (own,) = goal_rewards(record, config)
    told = {"chosen": (own, True) if label else (highest_goal(config), False), "rejected": (own, True)}
    sides = [side for side in goals if side == "chosen" or not label]
    return [
        Relabelled(record, Preference(goal=told[side][0], goal_of=side, order=(0,)), (told[side][1],)) for side in sides
    ]


def apart(relabelled: Relabelled) -> list[Relabelled]:
    """Each response with its label, by itself."""
    preference = relabelled.preference
    return [
        replace(relabelled, preference=replace(preference, order=(index,)), labels=(label,))
        for index, label in zip(preference.order, relabelled.labels, strict=True)
    ]


def highest_goal(config: Config) -> Goal:
    """relabel.goal_max, of every attribute."""
    names = config.relabel.attributes
    return (config.relabel.goal_max,) * len(names) if names else config.relabel.goal_max


def goal_rewards(record: Record, config: Config) -> Sequence[Goal] | None:
    """What goals are made of: the rewards, or of every response its attributes."""
    names = config.relabel.attributes
    if not names or not config.relabel.goals:
        return record.rewards
    return [tuple(each[name] for name in names) for each in record.attributes]


def rewards_under_goal(relabelled: Relabelled, config: Config) -> tuple[float, ...]:
    """What objectives read as rewards, in the preference's order: -(g - r)^2, or along a direction, or r without a goal."""
    goal, rewards = relabelled.preference.goal, goal_rewards(relabelled.record, config)
    if goal is None or rewards is None:
        return relabelled.rewards
    inside = lambda reward: sum(g * r for g, r in zip(goal, reward, strict=True))  # noqa: E731
    of = inside if config.relabel.goal_kind == "directions" else lambda reward: goal_reward(goal, reward)
    return tuple(of(rewards[index]) for index in relabelled.preference.order)


def preferences_of(record: Record, config: Config) -> list[Preference]:
    """One response is its own preference, at its own reward where goals are asked for; more go through the paper's rule."""
    options, rewards = config.relabel, goal_rewards(record, config)
    if options.goals and options.goal_kind == "directions":
        return directed_preferences(record, config)
    if len(record.responses) == 1:
        goal = rewards[0] if options.goals else None
        return [Preference(goal=goal, goal_of="chosen" if options.goals else None, order=(0,))]
    alone = responses_wanted(config) == "any"  # each response is learnt from by itself: a tie says something too
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
    """A direction drawn for the prompt orders all responses; of these the objective compares the first and the last."""
    goal = direction(prompt_share(record.prompt, seed=config.seed, purpose="direction"))
    order = along(goal, goal_rewards(record, config)) or (() if len(record.responses) > 1 else (0,))
    want = responses_wanted(config)
    order = order[:1] if want == "one" else (order[0], order[-1]) if order and want in ("pair", "labelled") else order
    return [Preference(goal=goal, goal_of="chosen", order=order)] if order else []


def rejected_goals(config: Config) -> tuple[float, float]:
    limits = config.relabel.rejected_goals
    return (ANY[0] if limits.min is None else limits.min, ANY[1] if limits.max is None else limits.max)


def is_tie(record: Record, config: Config) -> bool:
    """Whether the rewards, or what goals are made of in their place, are the same for all of several responses, or, for a
    single undesirable one, the highest."""
    rewards = goal_rewards(record, config)
    if rewards is not None and record.labels == (False,) and config.relabel.goals:
        return rewards[0] == highest_goal(config)
    directed = config.relabel.goals and config.relabel.goal_kind == "directions"
    if rewards is None or len(rewards) < 2:
        return False
    return not directed_preferences(record, config) if directed else all(reward == rewards[0] for reward in rewards)


def num_limited(records: Sequence[Record], config: Config) -> int:
    """How many rejected responses give no goal because of relabel.rejected_goals."""
    options, limits = config.relabel, rejected_goals(config)
    if "rejected" not in options.goals or options.goal_kind == "directions" or limits == ANY:
        return 0
    untied = [goal_rewards(r, config) for r in records if len(r.responses) > 1 and not is_tie(r, config)]
    return sum(not within(goal, limits) for goals in untied for goal in goals[1:])
