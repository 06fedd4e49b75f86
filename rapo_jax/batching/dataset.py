"""What a tokenized data set is: groups, and what is said about them."""

from dataclasses import dataclass, field
from typing import Any

from rapo_jax.batching.batch_plan import Group
from rapo_jax.data.report import Distributions
from rapo_jax.data.scaling import Scales


@dataclass(frozen=True)
class Dataset:
    """Tokenized groups in source order, the data report, and fingerprints.

    `source_fingerprint` is a hash of texts and scores as read, `fingerprint` of everything the training step sees.
    `scales` map rewards onto the goal scale; evaluation data use those of the training data. `distributions` are what the
    report's figure draws. `largest_id` is the largest token id, where it is known.
    """

    groups: list[Group]
    report: dict[str, Any]
    source_fingerprint: str
    fingerprint: str
    scales: Scales = field(default_factory=Scales)
    distributions: Distributions | None = None
    largest_id: int | None = None
