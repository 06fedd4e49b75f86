"""The losses by id, and what each requires from the data and the step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from jax import Array

from rapo_jax.objectives.likelihood import sft
from rapo_jax.objectives.listwise import infonca, nca, rrhf
from rapo_jax.objectives.margin_pairs import (
    discopop,
    dpo,
    exo_pair,
    hinge,
    ipo,
    r_dpo,
    robust_dpo,
    sigmoid_norm,
)
from rapo_jax.objectives.options import Option, options_of
from rapo_jax.objectives.pointwise import dro_pointwise, kto
from rapo_jax.objectives.ratio_pairs import (
    apo_down,
    apo_zero,
    bco_pair,
    cal_dpo,
    dpo_shift,
    dpop,
    nca_pair,
    sppo_hard,
)
from rapo_jax.objectives.reference_free import cpo, orpo, simpo, slic_hf
from rapo_jax.objectives.reward_gaps import reward_distill, rpo_bwd_kl, rpo_fwd_kl, rpo_sq, soft_label_dpo
from rapo_jax.objectives.reward_models import bradley_terry

Responses = Literal["one", "pair", "labelled", "all"]


@dataclass(frozen=True)
class LossSpec:
    """A loss, and what the step and the data have to supply for it.

    `responses`: "one" (the preferred one), "pair", "labelled" (desirable and undesirable ones, paired or not) or "all".
    `needs_rewards` may be the name of an option: rewards are then needed unless that option is 0.
    """

    loss: Callable[..., Array]
    responses: Responses = "pair"
    needs_reference: bool = True
    needs_rewards: bool | str = False
    needs_prompt: bool = False  # the log-probability of the prompt itself
    needs_divergence: bool = False  # estimated from a response to another prompt, which each group then carries
    needs_weight: bool = False  # loss weights from the data; where they exist the step applies them to every objective
    is_reward_model: bool = False  # trains a scalar head in place of a language model

    @property
    def options(self) -> Mapping[str, Option]:
        """The keyword-only arguments of the loss by name."""
        return options_of(self.loss)


OBJECTIVES: dict[str, LossSpec] = {
    "dpo": LossSpec(dpo),
    "robust_dpo": LossSpec(robust_dpo),
    "ipo": LossSpec(ipo),
    "hinge": LossSpec(hinge),
    "exo_pair": LossSpec(exo_pair),
    "discopop": LossSpec(discopop),
    "sigmoid_norm": LossSpec(sigmoid_norm),
    "r_dpo": LossSpec(r_dpo),
    "dpop": LossSpec(dpop),
    "dpo_shift": LossSpec(dpo_shift),
    "nca_pair": LossSpec(nca_pair),
    "bco_pair": LossSpec(bco_pair),
    "sppo_hard": LossSpec(sppo_hard),
    "apo_zero": LossSpec(apo_zero),
    "apo_down": LossSpec(apo_down),
    "cal_dpo": LossSpec(cal_dpo),
    "simpo": LossSpec(simpo, needs_reference=False),
    "orpo": LossSpec(orpo, needs_reference=False),
    "cpo": LossSpec(cpo, needs_reference=False),
    "slic_hf": LossSpec(slic_hf, needs_reference=False),
    "rpo_sq": LossSpec(rpo_sq, needs_rewards=True),
    "rpo_bwd_kl": LossSpec(rpo_bwd_kl, needs_rewards=True),
    "rpo_fwd_kl": LossSpec(rpo_fwd_kl, needs_rewards=True),
    "soft_label_dpo": LossSpec(soft_label_dpo, needs_rewards=True),
    "reward_distill": LossSpec(reward_distill, needs_rewards=True),
    "rrhf": LossSpec(rrhf, responses="all", needs_reference=False),
    "infonca": LossSpec(infonca, responses="all", needs_rewards=True),
    "nca": LossSpec(nca, responses="all", needs_rewards=True),
    "dro_pointwise": LossSpec(dro_pointwise, responses="all", needs_rewards=True, needs_prompt=True),
    "kto": LossSpec(kto, responses="labelled", needs_divergence=True),
    "sft": LossSpec(sft, responses="one", needs_reference=False),
    "weighted_sft": LossSpec(sft, responses="one", needs_reference=False, needs_weight=True),
    "bradley_terry": LossSpec(
        bradley_terry, needs_reference=False, needs_rewards="margin_weight", is_reward_model=True
    ),
}

# Names that mean different things to different people, with the ids of what they may mean.
AMBIGUOUS = {
    "rpo": {
        "rpo_sq, rpo_bwd_kl, rpo_fwd_kl": "Nemotron-4's reward-aware preference optimization",
        "reward_distill": "Fisch's robust preference optimization",
        "dpo with objective.plus=[{name: sft, weight: ...}]": "Liu's regularized preference optimization",
    },
    "dro": {
        "dro_pointwise": "direct reward optimization, explicit rewards",
        "robust_dpo": "distributionally or noise-robust DPO",
    },
    "slic": {"slic_hf": "SLiC-HF's calibration on log-probabilities", "hinge": "RSO's hinge on log-ratios"},
    "cdpo": {"dpo with objective.label_smoothing": "conservative DPO"},
    "ipo_avg": {"ipo with objective.average=true": "IPO per token"},
}

RESERVED = ("name", "weight", "plus", "best_goal_weight")  # keys of every objective, which no option may take


def register(name: str, spec: LossSpec) -> None:
    """Adds a loss under an id, which `objective.name` then accepts with the loss's options.

    Raises ValueError for an id that is taken or ambiguous, and for options that are not annotated, take a reserved name,
    or have a default outside their own range.
    """
    if name in OBJECTIVES or name in AMBIGUOUS:
        raise ValueError(f"the objective {name!r} exists or is ambiguous; choose another id")
    for option in spec.options.values():
        if option.name in RESERVED:
            raise ValueError(f"{name}: the option {option.name!r} is a key of every objective; rename it")
        if option.allowed and option.default is not None and option.default not in option.allowed:
            raise ValueError(f"{name}: the default {option.name}={option.default} {option.allowed.constraint}")
    OBJECTIVES[name] = spec
