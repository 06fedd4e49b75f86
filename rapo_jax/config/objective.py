"""The objective of a run: a loss by name, its options, and further losses added to it.

Which losses and options exist is read from the registry of rapo_jax/objectives/; none is named here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from rapo_jax.config.fields import about, description, key
from rapo_jax.errors import UserError, nearest
from rapo_jax.intervals import NOT_NEGATIVE
from rapo_jax.objectives import AMBIGUOUS, OBJECTIVES, LossSpec, Option

LossNeed = Literal["reference", "rewards", "prompt", "divergence", "weight"]


@dataclass(frozen=True)
class Objective:
    """A loss of the registry. In a file its options are keys beside `name`: {name: dpo, beta: 0.1}."""

    name: str = key("dpo", "the loss, see below", affects="arithmetic")
    weight: float = key(1.0, "factor of this loss in a sum", affects="arithmetic", allowed=NOT_NEGATIVE)
    plus: tuple["Objective", ...] = key(
        (), "further losses added to it: [{name: sft, weight: 0.5}]", affects="arithmetic"
    )
    best_goal_weight: float = key(
        0.0,
        "eta of the paper's algorithm 1, times -beta log pi(chosen | prompt, highest goal)",
        affects="arithmetic",
        allowed=NOT_NEGATIVE,
    )
    given: dict[str, Any] = field(
        default_factory=dict, hash=False, metadata=about("options that are set", affects="arithmetic")
    )

    @property
    def terms(self) -> tuple["Objective", ...]:
        """This loss and those added to it."""
        return (self, *self.plus)

    @property
    def spec(self) -> LossSpec:
        """The loss's entry in the registry."""
        return OBJECTIVES[self.name]

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the loss function: the given values, and defaults for the rest."""
        return {name: self.given.get(name, option.default) for name, option in self.spec.options.items()}

    def needs(self, what: LossNeed) -> bool:
        """Whether any term needs this: the reference's log-probabilities, rewards, the prompt's log-probability, the
        divergence, or loss weights from the data."""
        return any(needed_by(term, what) for term in self.terms)

    @property
    def is_reward_model(self) -> bool:
        """Whether a scalar head is trained in place of a language model."""
        return self.spec.is_reward_model

    @property
    def responses(self) -> str:
        """What the data has to supply for a prompt: "one" response, a "pair", "labelled" ones or "all" of them."""
        asked = {term.spec.responses for term in self.terms}
        return next(kind for kind in ("all", "labelled", "pair", "one") if kind in asked)

    @property
    def unit(self) -> str:
        """The unit of a batch: responses, pairs or groups."""
        return {"one": "responses", "pair": "pairs"}.get(self.responses, "groups")


def needed_by(term: Objective, what: LossNeed) -> bool:
    need: bool | str = getattr(term.spec, f"needs_{what}")
    return bool(term.options[need]) if isinstance(need, str) else need


def option_types(name: str) -> dict[str, Any]:
    """The type of every option of any loss; where losses differ, that of the loss `name`."""
    specs = [OBJECTIVES[name]] if name in OBJECTIVES else []
    types: dict[str, Any] = {}
    for spec in (*specs, *OBJECTIVES.values()):
        for option in spec.options.values():
            types.setdefault(option.name, option.type)
    return types


def flattened(objective: Objective) -> dict[str, Any]:
    """The keys and values of an objective as a file has them; options that are null, and an empty `plus`, are left out."""
    tree: dict[str, Any] = {"name": objective.name, "weight": objective.weight}
    if objective.plus:
        tree["plus"] = [flattened(term) for term in objective.plus]
    tree["best_goal_weight"] = objective.best_goal_weight
    return tree | {name: value for name, value in objective.options.items() if value is not None}


# Checks.


def resolve(objective: Objective, *, where: str) -> Objective:
    """The objective with all options of its loss, each checked. Raises UserError for what the loss does not read or allow."""
    require_known(objective.name, where)
    refuse_unread(objective, where)
    plus = tuple(resolve(term, where=f"{where}.plus[{n}]") for n, term in enumerate(objective.plus))
    objective = replace(objective, plus=plus, given=objective.options)
    check_numbers(objective, where)
    if objective.best_goal_weight and "beta" not in objective.options:
        raise UserError(
            f"{where}.best_goal_weight={objective.best_goal_weight} multiplies beta, and {objective.name} has none; use "
            "dpo or another objective with beta."
        )
    if where != "objective" and (objective.plus or objective.best_goal_weight):
        raise UserError(f"{where} is itself an added loss; it has neither plus nor best_goal_weight.")
    reward_models = [term.name for term in objective.terms if term.is_reward_model]
    if reward_models and len(objective.terms) > 1:
        raise UserError(
            f"{where}.name={reward_models[0]} trains a scalar head and cannot be added to other losses; remove plus."
        )
    return objective


def require_known(name: str, where: str) -> None:
    if name in AMBIGUOUS:
        meanings = "; ".join(f"{ids} ({meaning})" for ids, meaning in AMBIGUOUS[name].items())
        raise UserError(f"{where}.name={name!r} means different things to different people; choose {meanings}.")
    if name not in OBJECTIVES:
        raise UserError(f"{where}.name={name!r} is unknown; {nearest(name, list(OBJECTIVES))}")


def refuse_unread(objective: Objective, where: str) -> None:
    options = objective.spec.options
    unread = [f"{where}.{name}={value}" for name, value in objective.given.items() if name not in options]
    if unread:
        raise UserError(
            f"{where}.name={objective.name} does not read {', '.join(unread)}; remove it or set it to null (it reads "
            f"{', '.join(options) or 'no options'})."
        )


def check_numbers(objective: Objective, where: str) -> None:
    """Raises UserError for a number outside the interval that its field or its option declares."""
    allowed = {f.name: description(f).allowed for f in fields(objective)}
    options: Mapping[str, Option] = objective.spec.options
    allowed |= {name: option.allowed for name, option in options.items()}
    values = {"weight": objective.weight, "best_goal_weight": objective.best_goal_weight} | objective.options
    for name, value in values.items():
        interval = allowed[name]
        if interval is not None and value is not None and value not in interval:
            raise UserError(f"{where}.{name}={value} {interval.constraint}.")
