"""Rewards of any range -> scores on the goals' scale. The map is fitted once, kept beside the results, and shared.

One map for the reward and one for each attribute. Later rounds, and the evaluation set, use the map of the first.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rapo_jax.config import Relabel
from rapo_jax.data.records import Record
from rapo_jax.errors import UserError
from rapo_jax.relabel import Scale, fit_range

SIDECAR = "scale.json"
REWARD = "reward"


@dataclass(frozen=True)
class Scales:
    """The map of the reward (None: as it is) and of every attribute that has one."""

    reward: Scale | None = None
    attributes: dict[str, Scale] = field(default_factory=dict)

    def record(self, record: Record) -> Record:
        """The record on the goals' scale."""
        rewards, attributes = record.rewards, record.attributes
        if rewards is not None and self.reward is not None:
            rewards = tuple(map(self.reward, rewards))
        if attributes is not None and self.attributes:
            attributes = tuple(
                {
                    name: self.attributes[name](value) if name in self.attributes else value
                    for name, value in each.items()
                }
                for each in attributes
            )
        return replace(record, rewards=rewards, attributes=attributes)

    def tree(self) -> dict:
        """For the report and the sidecar; {} where nothing is mapped."""
        reward = {REWARD: asdict(self.reward)} if self.reward else {}
        return reward | (
            {"attributes": {name: asdict(s) for name, s in self.attributes.items()}} if self.attributes else {}
        )


def fit_scales(records: Sequence[Record], relabel: Relabel) -> Scales:
    """The maps that relabel.scale asks for. Raises UserError for a scale of zero width and for a file that is none."""
    options = relabel.scale
    if options.file:
        return read_scales(options.file)
    if options.fit == "none" and relabel.decimals is None:
        return Scales()
    rewards = [reward for record in records for reward in record.rewards or ()]
    named = {
        name: [each[name] for record in records for each in record.attributes or () if name in each]
        for name in relabel.attributes
    }
    return Scales(
        reward=_fit(rewards, relabel, "rewards") if rewards and not named else None,
        attributes={name: _fit(values, relabel, f"values of {name}") for name, values in named.items() if values},
    )


def _fit(values: Sequence[float], relabel: Relabel, what: str) -> Scale:
    options, ends = relabel.scale, (relabel.goal_min, relabel.goal_max)
    if options.fit == "none":  # only rounded
        return Scale(*ends, *ends, clip=False, decimals=relabel.decimals)
    if options.fit == "range":
        low, high = options.source_min, options.source_max
    else:
        low, high = fit_range(values, options.fit, quantile=options.quantile, deviations=options.deviations)
    if not high > low:
        raise UserError(
            f"relabel.scale.fit={options.fit}: the scale of the {len(values)} {what} goes from {low} to {high}, a width "
            "of zero; it tells no response from another. Choose another relabel.scale.fit, or check the scores."
        )
    decimals = 1 if relabel.decimals is None else relabel.decimals
    return Scale(low, high, *ends, clip=options.clip, decimals=decimals)


def read_scales(path: str) -> Scales:
    file = Path(path).expanduser()
    try:
        tree = json.loads(file.read_text())
        reward = Scale(**tree[REWARD]) if REWARD in tree else None
        return Scales(reward, {name: Scale(**scale) for name, scale in tree.get("attributes", {}).items()})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"relabel.scale.file={path} cannot be read as a scale ({error}); give a {SIDECAR} that a run or "
            "`rapo relabel` wrote."
        ) from error


def write_scales(path: Path, tree: dict) -> None:
    path.write_text(json.dumps(tree, indent=2) + "\n")
