"""The data section of a configuration -> records that are ready to be relabelled: on the goal scale, and with as many
responses as the objective compares. Everything that is left out on the way is counted.

The order: read, rewards from elsewhere, contaminated rows, max_rows, held-out prompts, mixture, scale, fraction,
pairs.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from rapo_jax.config.tree import Config
from rapo_jax.data import mixture
from rapo_jax.data.configured import ConfiguredSource, Part, read_source
from rapo_jax.data.pairs import fine_grained_agree, reduce_record
from rapo_jax.data.row_needs import Want, row_needs_of
from rapo_jax.data.scaling import Scales, fit_scales
from rapo_jax.data.sources import SourceRecords, several_facts
from rapo_jax.errors import UserError, counted
from rapo_jax.messages import Record


@dataclass(frozen=True)
class SourceSummary:
    """One source, for the report: `rows` were read, and `used` records of them are in the mixture."""

    path: str
    name: str
    schema: str
    rows: int
    used: int


@dataclass(frozen=True)
class Prepared:
    """Records to relabel, what became of the rows they are from, and the map of their scores.

    `dropped` counts rows by reason or, for reasons that apply after data.pairs has split rows, pairs. `fingerprint` is
    a hash of texts and scores as they were read. `said` is what the user calls the sources.
    """

    said: str
    records: list[Record]
    num_rows: int
    dropped: dict[str, int]
    notes: dict[str, int]
    merged: int
    reward_source: str
    scales: Scales
    fingerprint: str
    sources: tuple[SourceSummary, ...] = ()


def prepare(
    config: Config, sources: Sequence[ConfiguredSource], *, part: Part, scales: Scales | None = None
) -> Prepared:
    """Reads the sources into records that are ready to be relabelled. With `scales` None, scales are fitted on them.

    Raises UserError for sources that cannot be used.
    """
    need, dropped = row_needs_of(config), Counter()
    read = [read_source(config, source, need) for source in sources]
    mixed = select(config, sources, read, part=part, dropped=dropped)
    records = list(chain.from_iterable(mixed))
    check_goal_inputs(records, config)
    scales = fit_scales(records, config.relabel) if scales is None else scales
    scaled = [scales.record(record) for record in records]
    made_equal = sum(num_scores(after) < num_scores(before) for before, after in zip(records, scaled, strict=True))
    if part == "train":
        scaled = [r for r in scaled if mixture.is_within(r, config.relabel.fraction, seed=config.seed)]
        dropped["outside_fraction"] += len(records) - len(scaled)
    notes = sum((Counter(found.notes) for found in read), Counter(scores_made_equal_by_scale=made_equal))
    return Prepared(
        said=", ".join(source.said for source in sources),
        records=reduce_records(scaled, config, want=need.want, dropped=dropped),
        num_rows=sum(found.num_rows for found in read),
        dropped={reason: number for reason, number in dropped.items() if number},
        notes=dict(notes),
        merged=sum(found.merged for found in read),
        reward_source="; ".join(dict.fromkeys(found.reward_source for found in read)),
        scales=scales,
        fingerprint=fingerprint_of_records([record for found in read for record in found.records]),
        sources=tuple(
            SourceSummary(source.options.path, source.options.name, found.schema, found.num_rows, len(used))
            for source, found, used in zip(sources, read, mixed, strict=True)
        ),
    )


def select(
    config: Config,
    sources: Sequence[ConfiguredSource],
    read: Sequence[SourceRecords],
    *,
    part: Part,
    dropped: Counter[str],
) -> list[list[Record]]:
    """The records of every source that take part: at most max_rows, not held out, in the source's share of the mixture.

    Those left out are added to `dropped`.
    """
    data, seed, kept = config.data, config.seed, []
    for source, found in zip(sources, read, strict=True):
        dropped.update(found.dropped)
        most = source.options.max_rows
        records = found.records if most is None else mixture.sample(found.records, most, seed=seed)
        dropped["beyond_max_rows"] += len(found.records) - len(records)
        if data.eval_fraction:
            held = [mixture.is_held_out(record, data.eval_fraction, seed=seed) for record in records]
            wanted = [record for record, out in zip(records, held, strict=True) if out == (part == "eval")]
            dropped["held_out" if part == "train" else "not_held_out"] += len(records) - len(wanted)
            records = wanted
        kept.append(records)
    if data.eval_fraction and not any(kept):
        number, held, change = sum(len(found.records) for found in read), "none", "raise"
        if part == "train":
            held, change = "all", "lower"
        raise UserError(
            f"data.eval_fraction={data.eval_fraction} holds {held} of {counted(number, 'row')} out; {change} it, or remove it."
        )
    sizes = mixture.mixture_sizes([len(records) for records in kept], [source.options.weight for source in sources])
    mixed = [mixture.sample(records, size, seed=seed) for records, size in zip(kept, sizes, strict=True)]
    dropped["beyond_share"] += sum(map(len, kept)) - sum(map(len, mixed))
    return mixed


def check_goal_inputs(records: Sequence[Record], config: Config) -> None:
    """Raises UserError where a row lacks what its goal sentence mentions: an attribute, or its source."""
    if config.relabel.goals and config.relabel.attributes:
        check_attributes(records, config.relabel.attributes)
    nameless = [record.row for record in records if not record.source]
    if nameless and "{source}" in config.relabel.template:
        raise UserError(
            f"relabel.template says {{source}}, but {len(nameless)} of {counted(len(records), 'row')} have none (the first is row "
            f"{nameless[0]}); name their column with data.columns.source=..., or the sources with name in data.sources."
        )


def check_attributes(records: Sequence[Record], names: Sequence[str]) -> None:
    """Raises UserError naming the rows whose responses lack one of the attributes that goals are made of."""
    facts = []
    for record in records:
        for number, each in enumerate(record.attributes or [{} for _ in record.responses], 1):
            absent = [name for name in names if name not in each]
            if absent:
                has = ", ".join(each) or "no attributes"
                facts.append(f"row {record.row} has no {', '.join(absent)} of response {number} (it has {has})")
                break
    if facts:
        complaint = (
            f"relabel.attributes=[{', '.join(names)}]: {len(facts)} of {counted(len(records), 'row')} lack an attribute. Name the "
            "column that holds them with data.columns.attributes=..., or change relabel.attributes."
        )
        raise UserError(several_facts(complaint, facts))


def num_scores(record: Record) -> int:
    """The number of distinct rewards plus the number of distinct sets of attributes."""
    different = [tuple(sorted(each.items())) for each in record.attributes or ()]
    return len(set(record.rewards or ())) + len(set(different))


def reduce_records(records: Sequence[Record], config: Config, *, want: Want, dropped: Counter[str]) -> list[Record]:
    """Records with as many responses as the objective compares; goal directions need all of them and pick later."""
    directed = config.relabel.goals and config.relabel.goal_kind == "directions"
    reduced = []
    for record in records:
        found = reduce_record(record, want="all" if directed else want, pairs=config.data.pairs, seed=config.seed)
        dropped["undesirable"] += not found
        if config.data.fine_grained_agree:
            agreeing = [one for one in found if fine_grained_agree(one)]
            dropped["fine_grained_disagree"] += len(found) - len(agreeing)
            found = agreeing
        reduced += found
    return reduced


def fingerprint_of_records(records: Sequence[Record]) -> str:
    """sha256 of prompts, responses and rewards, and of attributes, labels and weights where there are any."""
    digest = hashlib.sha256()
    for record in records:
        turns = [(message.role, message.content) for message in record.prompt]
        extra = {
            f.name: value
            for f in dataclasses.fields(Record)
            if f.name in ("attributes", "labels", "weight") and (value := getattr(record, f.name)) != f.default
        }
        content = [turns, record.responses, record.rewards] + ([extra] if extra else [])
        digest.update(json.dumps(content).encode())
    return digest.hexdigest()
