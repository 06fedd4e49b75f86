"""The contract between data and step: one optimizer batch as arrays of fixed shape.

A batch holds M microbatches of B rows. In a row each group's prompt is laid out once, followed by its branches: the
responses, and last, where the objective asks for one, a response to another prompt. Attention follows (group, branch),
rotary embeddings follow position. Scored positions are listed apart from the tokens: the hidden state at `source`
predicts token `target` for `slot`, because the last prompt token predicts the first token of every response, and because
only scored positions are multiplied by the vocabulary matrix.

    tokens    [p p p a a b . .]    one group: prompt ppp, chosen aa, rejected b, two of padding
    group     [1 1 1 1 1 1 0 0]    branch [0 0 0 1 1 2 0 0]    position [0 1 2 3 4 3 0 0]
    source    [2 3 2 . ]           hidden state at p2 predicts a0, a0 predicts a1, p2 predicts b0
    slot      [1 1 2 Z ]           group 0 branch 1, branch 1, branch 2; Z = none

Where rows are shorter than the longest group, a group may be split over rows of its microbatch: some of its branches stand
in another row, after a copy of the prompt. All that belongs to the group is at its home, one of these rows, and `summed_at`
says at which place of which row each branch is summed.

Where devices share rows (mesh.context), `tokens`, `position`, `group` and `branch` stand in another order, in which each device
has as much to do, and `source` points into it: what a token sees follows from its position, not from its place.
"""

from dataclasses import dataclass, fields
from typing import Generic, Literal, TypeVar

import jax
import numpy as np
from jax import Array

Leaf = TypeVar("Leaf", covariant=True)

# Whose reward is the goal of a group. BEST: the highest goal, in groups that only add a likelihood term.
NO_SIDE, CHOSEN_SIDE, REJECTED_SIDE, BEST_SIDE = 0, 1, 2, 3

# Which tokens of a group are scored: "responses", those of its responses (and of the response to another prompt);
# "prompt_too", also the prompt's, except its first; "last", the last token of each response, for reward models.
Scored = Literal["responses", "prompt_too", "last"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch(Generic[Leaf]):
    """Arrays [M, B, ...], or [B, ...] for one microbatch; int32 except `reward`, `weight` and `reference` (float32).

    Batch[np.ndarray] on the host, Batch[Array] on devices; Batch[NamedSharding] and Batch[ShapeDtypeStruct] describe one.

    Branches of a group: 0 is the prompt, 1 to C its responses, branch 1 preferred under the group's goal, and C + 1,
    if there is one, an unrelated response: one that answers another prompt. Missing branches are not scored.
    `side` is -1 where no group is at home: such a place is padding, or holds branches that were moved there. Of the M
    microbatches the first `num_microbatches` are in use; the others are padding and never computed.
    """

    tokens: Leaf  # M B T
    position: Leaf  # M B T
    group: Leaf  # M B T
    branch: Leaf  # M B T
    source: Leaf  # M B S
    target: Leaf  # M B S
    slot: Leaf  # M B S
    side: Leaf  # M B P
    weight: Leaf  # M B P, factor of the group's loss
    reward: Leaf  # M B P C, under the group's goal; NaN without rewards
    reference: Leaf  # M B P A, cached log-probability of each branch under the reference; NaN without
    summed_at: Leaf  # M B P E, row * P + place where each branch is summed, B * P if nowhere; E is A if any group is split, else 0
    num_microbatches: Leaf  # scalar

    @property
    def num_groups(self: "Batch[Array | np.ndarray]") -> int:
        """P, the most groups of a row."""
        return self.side.shape[-1]

    @property
    def num_responses(self: "Batch[Array | np.ndarray]") -> int:
        """C, responses in a group."""
        return self.reward.shape[-1]

    @property
    def num_branches(self: "Batch[Array | np.ndarray]") -> int:
        """A, branches of a group: the prompt, C responses, and an unrelated one if there is any."""
        return self.reference.shape[-1]

    @property
    def has_unrelated(self: "Batch[Array | np.ndarray]") -> bool:
        """Whether groups carry a response to another prompt, as their last branch."""
        return self.num_branches > self.num_responses + 1

    @property
    def is_split(self: "Batch[Array | np.ndarray]") -> bool:
        """Whether groups may have branches in other rows."""
        return self.summed_at.shape[-1] > 0


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
    "summed_at": "MBPE",
    "num_microbatches": "",
}
FLOATS = ("weight", "reward", "reference")  # float32; all others are int32
assert list(LETTERS) == [f.name for f in fields(Batch)]


@dataclass(frozen=True)
class Shape:
    """The sizes of a batch, for which the step is compiled; the same for every step of a run."""

    M: int
    B: int
    T: int
    S: int
    P: int
    C: int
    scored: Scored = "responses"
    unrelated: bool = False  # a response to another prompt is a branch of every group
    split: bool = False  # some groups have branches in other rows
    context: int = 1  # shards of a row's tokens, to which they are dealt (batching/dealing.py)

    @property
    def E(self) -> int:
        """A where some groups are split, else 0."""
        return self.A * self.split

    @property
    def A(self) -> int:
        """Branches of a group: the prompt, C responses, and an unrelated one if there is any."""
        return self.C + 1 + self.unrelated
