"""The contract between data and step: one optimizer batch as arrays of fixed shape.

A batch holds M microbatches of B rows. In a row a group's prompt is laid out once and its responses follow; who sees
whom is told by (group, branch), where a token stands by position. What is scored is listed apart from the tokens:
hidden state `source` predicts token `target` for `slot`, because the last prompt token predicts the first token of every
response, and because only scored positions ever meet the vocabulary matrix.

    tokens    [p p p a a b . .]    one group: prompt ppp, chosen aa, rejected b, two of padding
    group     [1 1 1 1 1 1 0 0]    branch [0 0 0 1 1 2 0 0]    position [0 1 2 3 4 3 0 0]
    source    [2 3 2 . ]           hidden state at p2 predicts a0, a0 predicts a1, p2 predicts b0
    slot      [1 1 2 Z ]           group 0 branch 1, branch 1, branch 2; Z = nothing
"""

from dataclasses import dataclass, fields
from typing import Literal

import jax
import numpy as np
from jax import Array

# Whose reward is the goal of a group. BEST: the highest goal, for the regulariser that is no preference.
NO_SIDE, CHOSEN_SIDE, REJECTED_SIDE, BEST_SIDE = 0, 1, 2, 3

# What is scored of a group: its responses; these and the prompt without its first token; or one position, the last, of
# each response, for reward models.
Scored = Literal["responses", "prompt_too", "last"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Arrays [M, B, ...]; int32 but for `reward`, `weight` and `reference` (float32). Branch 1 is preferred under the group's
    goal; a response that a group does not have is nowhere scored.

    `side` is -1 where a row has fewer than P groups: that group does not exist and counts nowhere. `num_microbatches`
    says how many of the M are used (the rest are padding and are never computed).
    """

    tokens: Array | np.ndarray  # M B T
    position: Array | np.ndarray  # M B T
    group: Array | np.ndarray  # M B T
    branch: Array | np.ndarray  # M B T
    source: Array | np.ndarray  # M B S
    target: Array | np.ndarray  # M B S
    slot: Array | np.ndarray  # M B S
    side: Array | np.ndarray  # M B P
    weight: Array | np.ndarray  # M B P, by which the loss of a group is multiplied
    reward: Array | np.ndarray  # M B P C, under the group's goal; NaN without rewards
    reference: Array | np.ndarray  # M B P A, the reference's log-probability of each branch; NaN where not cached
    num_microbatches: Array | np.ndarray  # scalar

    @property
    def num_groups(self) -> int:
        """P, groups that a row has room for."""
        return self.side.shape[-1]

    @property
    def num_responses(self) -> int:
        """C, responses in a group."""
        return self.reward.shape[-1]


LETTERS = {
    "tokens": "MBT",
    "position": "MBT",
    "group": "MBT",
    "branch": "MBT",
    "source": "MBS",
    "target": "MBS",
    "slot": "MBS",
    "side": "MBP",
    "weight": "MBP",
    "reward": "MBPC",
    "reference": "MBPA",
    "num_microbatches": "",
}
FLOATS = ("weight", "reward", "reference")  # float32; all others are int32
assert list(LETTERS) == [f.name for f in fields(Batch)]


@dataclass(frozen=True)
class Shape:
    """The sizes of a batch, equal for every step of a run: what the step is compiled for."""

    M: int
    B: int
    T: int
    S: int
    P: int
    C: int
    scored: Scored = "responses"

    @property
    def A(self) -> int:
        """Branches of a group: the prompt and C responses."""
        return self.C + 1
