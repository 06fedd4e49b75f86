"""The objective of a run: a loss by name, its options, and further losses added to it."""

from dataclasses import dataclass
from typing import Any

from rapo_jax.config.fields import key
from rapo_jax.intervals import NOT_NEGATIVE
from rapo_jax.objectives import OBJECTIVES


@dataclass(frozen=True)
class Objective:
    """A loss of rapo_jax/objectives.py. Options are the keyword arguments of its function; what is not given is the
    function's default, what the function does not read is refused."""

    name: str = key("dpo", "the loss", affects="arithmetic")
    weight: float = key(1.0, "factor of this loss in a sum", affects="arithmetic", allowed=NOT_NEGATIVE)
    plus: tuple["Objective", ...] = key((), "further losses, each with its weight, added to it", affects="arithmetic")
    best_goal_weight: float = key(
        0.0,
        "eta of the paper's algorithm 1: factor of -beta log pi(chosen | prompt, highest goal)",
        affects="arithmetic",
        allowed=NOT_NEGATIVE,
    )
    beta: float | None = None
    label_smoothing: float | None = None  # dpo, robust_dpo, exo_pair, simpo
    average: bool | None = None  # ipo, cpo: per token, as TRL has them
    gamma: float | None = None  # simpo's margin
    delta: float | None = None  # slic_hf's margin
    sft_weight: float | None = None  # cpo, slic_hf, rrhf: of the chosen response's negative log-likelihood
    odds_weight: float | None = None  # orpo's lambda
    length_weight: float | None = None  # r_dpo's alpha
    penalty: float | None = None  # dpop's lambda
    shift: float | None = None  # dpo_shift's factor
    shift_end: float | None = None  # dpo_shift's factor at the last step
    temperature: float | None = None  # discopop's tau, alpha of nca and infonca
    calibration: float | None = None  # cal_dpo: 1 in the paper, 0.5 in its code
    eta: float | None = None  # rpo_*, soft_label_dpo: of the difference of rewards
    log_z0: float | None = None  # dro_pointwise
    joint: bool | None = None  # dro_pointwise: eq. 8 in place of algorithm 1
    reward_scale: float | None = None  # dro_pointwise
    reward_shift: float | None = None  # dro_pointwise
    desirable_weight: float | None = None  # kto
    undesirable_weight: float | None = None  # kto
    margin_weight: float | None = None  # bradley_terry: of the difference of rewards
    centre_weight: float | None = None  # bradley_terry

    @property
    def terms(self) -> tuple["Objective", ...]:
        """This loss and those added to it."""
        return (self, *self.plus)

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the loss function."""
        defaults = OBJECTIVES[self.name].options
        return {key: default if getattr(self, key) is None else getattr(self, key) for key, default in defaults.items()}

    def needs(self, what: str) -> bool:
        """Whether any term needs `what`: "reference", "rewards", "prompt", "divergence" or "weight".

        Weights multiply the loss of whatever objective; only one that needs them asks that there be some.
        """
        return any(needed_by(term, what) for term in self.terms)

    @property
    def is_reward_model(self) -> bool:
        """Whether a scalar head is trained in place of a language model."""
        return OBJECTIVES[self.name].is_reward_model

    @property
    def responses(self) -> str:
        """What the data has to supply for a prompt: "one" response, a "pair", "labelled" ones or "all" of them."""
        asked = {OBJECTIVES[term.name].responses for term in self.terms}
        return next(kind for kind in ("all", "labelled", "pair", "one") if kind in asked)


def needed_by(term: Objective, what: str) -> bool:
    need = getattr(OBJECTIVES[term.name], f"needs_{what}")
    return bool(getattr(term, need)) if isinstance(need, str) else need
