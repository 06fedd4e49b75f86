"""Linear maps from rewards of any range onto the goal scale: fitted on the training data, saved, and reused.

One map for the reward and one per attribute, over all records or per source. The evaluation set and later rounds use the
maps of the first training data.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rapo_jax.borders import path_of, read_object, shaped
from rapo_jax.config.tree import Relabel
from rapo_jax.errors import UserError
from rapo_jax.messages import Record
from rapo_jax.relabel import Scale, fit_range

SCALE_FILE = "scale.json"
REWARD = "reward"


@dataclass(frozen=True)
class Scales:
    """The maps of the reward (None is the identity) and of attributes; with `sources`, those of each source instead."""

    reward: Scale | None = None
    attributes: dict[str, Scale] = field(default_factory=dict)
    sources: dict[str, "Scales"] = field(default_factory=dict)

    def record(self, record: Record) -> Record:
        """The record on the goal scale. Raises UserError if maps are per source and the record's source has none."""
        if self.sources:
            return self._of(record).record(record)
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

    def _of(self, record: Record) -> "Scales":
        if record.source not in self.sources:
            raise UserError(
                f"row {record.row} is of source {record.source!r}, for which relabel.scale.by=source has no map; known: "
                f"{', '.join(map(repr, self.sources))}. Name sources alike in training and evaluation."
            )
        return self.sources[record.source]

    def tree(self) -> dict[str, Any]:
        """As JSON, for the report and scale.json; {} where nothing is mapped."""
        tree = {REWARD: asdict(self.reward)} if self.reward else {}
        if self.attributes:
            tree["attributes"] = {name: asdict(scale) for name, scale in self.attributes.items()}
        if self.sources:
            tree["sources"] = {name: scales.tree() for name, scales in self.sources.items()}
        return tree


def fit_scales(records: Sequence[Record], relabel: Relabel) -> Scales:
    """The maps that relabel.scale configures.

    Raises UserError for a range of zero width or an unreadable relabel.scale.file.
    """
    options = relabel.scale
    if options.file:
        return read_scales(options.file)
    if options.fit == "none" and relabel.decimals is None:
        return Scales()
    if options.by == "all" or options.fit == "none":
        return _fit_together(records, relabel, of="")
    by_source: dict[str, list[Record]] = {}
    for record in records:
        by_source.setdefault(record.source, []).append(record)
    return Scales(
        sources={name: _fit_together(one, relabel, of=f" of source {name!r}") for name, one in by_source.items()}
    )


def _fit_together(records: Sequence[Record], relabel: Relabel, *, of: str) -> Scales:
    rewards = [reward for record in records for reward in record.rewards or ()]
    named = {
        name: [each[name] for record in records for each in record.attributes or () if name in each]
        for name in relabel.attributes
    }
    return Scales(
        reward=_fit(rewards, relabel, f"rewards{of}") if rewards and not named else None,
        attributes={name: _fit(values, relabel, f"values of {name}{of}") for name, values in named.items() if values},
    )


def _fit(values: Sequence[float], relabel: Relabel, what: str) -> Scale:
    options, ends = relabel.scale, (relabel.goal_min, relabel.goal_max)
    if options.fit == "none":  # the identity, then rounding
        return Scale(*ends, *ends, clip=False, decimals=relabel.decimals)
    if options.fit == "range":
        low, high = options.source_min, options.source_max
    else:
        low, high = fit_range(values, options.fit, quantile=options.quantile, deviations=options.deviations)
    if low is None or high is None or not high > low:
        raise UserError(
            f"relabel.scale.fit={options.fit}: the scale of the {len(values)} {what} goes from {low} to {high}, a width "
            "of zero, which maps all responses to one score. Choose another relabel.scale.fit, or check the scores."
        )
    if not math.isfinite(high - low):
        raise UserError(
            f"relabel.scale.fit={options.fit}: the scale of the {len(values)} {what} goes from {low} to {high}, further than "
            "a number goes; correct the scores."
        )
    decimals = 1 if relabel.decimals is None else relabel.decimals
    return Scale(low, high, *ends, clip=options.clip, decimals=decimals)


def read_scales(path: str) -> Scales:
    """The maps that a run or `rapo relabel` wrote."""
    remedy = f"relabel.scale.file must be a {SCALE_FILE} that a run or `rapo relabel` wrote"
    tree = read_object(path_of(path, said=f"relabel.scale.file={path}"), remedy=remedy)
    return shaped(tree, Scales, said=path, remedy=remedy)
