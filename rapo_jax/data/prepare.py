"""From the data section of a configuration to records that are ready to be relabelled: on the goals' scale, and with as
many responses as the objective compares. Everything that is left out on the way is counted.

The order: read, rewards from elsewhere, what must not be learnt, cap, what is held out, mixture, scale, fraction, pairs.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from rapo_jax.config import tree as settings
from rapo_jax.config.tree import Config
from rapo_jax.data import mixture
from rapo_jax.data.columns import FOR_GOALS, Want
from rapo_jax.data.pairs import fine_grained_agree, reduce_record
from rapo_jax.data.rewards import CONSTANT, read_scores, told, with_constants, with_scores
from rapo_jax.data.scaling import Scales, fit_scales
from rapo_jax.data.sources import SHOWN, Source, counts, read_records
from rapo_jax.errors import UserError
from rapo_jax.messages import Record

Part = Literal["train", "eval"]


@dataclass(frozen=True)
class Prepared:
    """Records to relabel, what became of the rows they are from, and the map of their scores.

    `dropped` counts rows by reason; after `data.pairs` has made pairs of a row, pairs. `fingerprint` is of texts and
    scores as they were read.
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
    sources: list[dict] = field(default_factory=list)


def sources_of(config: Config, part: Part) -> tuple[tuple[str, settings.SourceOptions], ...]:
    """(what the user calls it, the source) for every source of the training or of the evaluation."""
    data = config.data
    common = settings.SourceOptions(
        path=data.path,
        split=data.split,
        revision=data.revision,
        schema=data.schema,
        rewards=data.rewards,
        columns=data.columns,
    )
    if part == "eval" and data.eval_path:
        rewards = data.eval_rewards or (CONSTANT if data.rewards == CONSTANT else "")
        return (
            (
                "data.eval_path",
                replace(common, path=data.eval_path, split=data.eval_split, revision="", rewards=rewards),
            ),
        )
    if data.sources:
        return tuple((f"data.sources[{index}].path", source) for index, source in enumerate(data.sources))
    return (("data.path", common),)


def prepare(
    config: Config,
    sources: Sequence[tuple[str, settings.SourceOptions]],
    *,
    part: Part,
    want: Want,
    scores_required: bool,
    scales: Scales | None = None,
) -> Prepared:
    """Reads the sources and makes records of them. `scales` None: fitted on these records.

    Raises UserError for everything that is wrong with them.
    """
    dropped = Counter()
    read = [
        read_source(config, source, option=option, want=want, scores_required=scores_required)
        for option, source in sources
    ]
    mixed = select(config, [source for _, source in sources], read, part=part, dropped=dropped)
    records = [record for records in mixed for record in records]
    if config.relabel.goals and config.relabel.attributes:
        check_attributes(records, config.relabel.attributes)
    if "{source}" in config.relabel.template:
        check_sources(records)
    scales = fit_scales(records, config.relabel) if scales is None else scales
    scaled = [scales.record(record) for record in records]
    made_equal = sum(num_scores(after) < num_scores(before) for before, after in zip(records, scaled, strict=True))
    if part == "train":
        scaled = [r for r in scaled if mixture.is_within(r, config.relabel.fraction, seed=config.seed)]
        dropped["outside_fraction"] += len(records) - len(scaled)
    return Prepared(
        said=", ".join(f"{option}={source.path}" for option, source in sources),
        records=reduce_records(scaled, config, want=want, dropped=dropped),
        num_rows=sum(found.num_rows for found in read),
        dropped={reason: number for reason, number in dropped.items() if number},
        notes=dict(sum((Counter(found.notes) for found in read), Counter(scores_made_equal_by_scale=made_equal))),
        merged=sum(found.merged for found in read),
        reward_source="; ".join(dict.fromkeys(found.reward_source for found in read)),
        scales=scales,
        fingerprint=fingerprint_of_records([record for found in read for record in found.records]),
        sources=[
            {"path": path, "name": name, "schema": found.schema, "rows": found.num_rows, "used": len(used)}
            for path, name, found, used in zip(
                [source.path for _, source in sources], [source.name for _, source in sources], read, mixed, strict=True
            )
        ],
    )


def select(
    config: Config, sources: Sequence[settings.SourceOptions], read: Sequence[Source], *, part: Part, dropped: Counter
) -> list[list[Record]]:
    """Of every source the records that take part: at most max_rows, on this side of what is held out, in their share."""
    data, seed, kept = config.data, config.seed, []
    for source, found in zip(sources, read, strict=True):
        dropped.update(found.dropped)
        records = (
            found.records if source.max_rows is None else mixture.sample(found.records, source.max_rows, seed=seed)
        )
        dropped["beyond_max_rows"] += len(found.records) - len(records)
        if data.eval_fraction:
            held = [mixture.is_held_out(record, data.eval_fraction, seed=seed) for record in records]
            wanted = [record for record, out in zip(records, held, strict=True) if out == (part == "eval")]
            dropped["held_out" if part == "train" else "not_held_out"] += len(records) - len(wanted)
            records = wanted
        kept.append(records)
    sizes = mixture.mixture_sizes([len(records) for records in kept], [source.weight for source in sources])
    mixed = [mixture.sample(records, size, seed=seed) for records, size in zip(kept, sizes, strict=True)]
    dropped["beyond_share"] += sum(map(len, kept)) - sum(map(len, mixed))
    return mixed


def read_source(
    config: Config, source: settings.SourceOptions, *, option: str, want: Want, scores_required: bool
) -> Source:
    """The records of one source with their rewards, without those that must not be learnt."""
    data = config.data
    elsewhere = bool(source.rewards)
    found = read_records(
        source.path,
        split=source.split,
        revision=source.revision,
        columns=source.columns,
        scores_required=scores_required and not elsewhere and not config.relabel.attributes,
        scores_for=FOR_GOALS if config.relabel.goals else for_objective(config),
        want="each" if data.pairs == "each" and want == "one" else want,
        schema=source.schema,
        bad_rows=data.bad_rows,
        defect=data.score_defect,
        option=option,
    )
    records, rewards_option = found.records, option.replace("path", "rewards")
    reward_source = found.reward_source
    if source.rewards == CONSTANT:
        records = with_constants(records, *data.constant_rewards)
        reward_source = "constants {:g} and {:g}".format(*data.constant_rewards)
    elif elsewhere:
        scores = read_scores(source.rewards, option=rewards_option)
        records = with_scores(records, scores, num_rows=found.num_rows, option=rewards_option)
        reward_source = told(scores)
    questions = mixture.read_questions(data.drop_prompts) if data.drop_prompts else frozenset()
    dropped, kept = Counter(found.dropped), []
    for record in records:
        record = replace(record, source=source.name or record.source)
        reason = mixture.contamination(record, sources=data.drop_sources, questions=questions)
        if reason:
            dropped[reason] += 1
        else:
            weight = record.weight * data.source_weights.get(record.source, 1.0)
            kept.append(replace(record, weight=weight))
    check_source_weights(config, kept)
    if config.objective.needs("weight") and not (found.columns.weight or data.source_weights):
        raise UserError(
            f"objective.name={config.objective.name} weighs responses, and {option}={source.path} has no weights: name "
            "their column with data.columns.weight=..., give data.source_weights={SOURCE: WEIGHT, ...}, or use sft."
        )
    if not kept:
        raise UserError(f"{option}={source.path}: none of {found.num_rows} rows is left; dropped: {counts(dropped)}.")
    return replace(found, records=kept, dropped=dict(dropped), reward_source=reward_source)


def for_objective(config: Config) -> tuple[str, str]:
    return (f"objective.name={config.objective.name} compares scores", "or choose another objective")


def check_source_weights(config: Config, records: Sequence[Record]) -> None:
    """With one source of data, a weight for a source that no row names is a mistake."""
    named = {record.source for record in records}
    unknown = [name for name in config.data.source_weights if name not in named]
    if unknown and not config.data.sources:
        known = (
            ", ".join(sorted(named)[:10]) if named != {""} else "none: name their column with data.columns.source=..."
        )
        raise UserError(f"data.source_weights names {', '.join(unknown)}, which no row is from; sources: {known}.")


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
        more = [f"... and {len(facts) - SHOWN} more"] if len(facts) > SHOWN else []
        complaint = (
            f"relabel.attributes=[{', '.join(names)}]: {len(facts)} of {len(records)} rows lack an attribute. Name the "
            "column that holds them with data.columns.attributes=..., or change relabel.attributes."
        )
        raise UserError("\n  ".join([complaint, *facts[:SHOWN], *more]))


def check_sources(records: Sequence[Record]) -> None:
    """Raises UserError where the prompt is to say a source that a row does not have."""
    nameless = [record.row for record in records if not record.source]
    if nameless:
        raise UserError(
            f"relabel.template says {{source}}, but {len(nameless)} of {len(records)} rows have none (the first is row "
            f"{nameless[0]}); name their column with data.columns.source=..., or the sources with name in data.sources."
        )


def num_scores(record: Record) -> int:
    """How many different rewards there are, and different attributes."""
    different = [tuple(sorted(each.items())) for each in record.attributes or ()]
    return len(set(record.rewards or ())) + len(set(different))


def reduce_records(records: Sequence[Record], config: Config, *, want: Want, dropped: Counter) -> list[Record]:
    """As many responses in a record as the objective compares; along a direction, the preference picks them later."""
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
