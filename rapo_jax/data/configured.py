"""The sources of a configuration, each read with its rewards and without the rows that must not be trained on."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rapo_jax.config.tree import Config, SourceOptions
from rapo_jax.data import mixture
from rapo_jax.data.rewards import CONSTANT, origin_in_words, read_scores, with_constants, with_scores
from rapo_jax.data.row_needs import RowNeeds
from rapo_jax.data.schemas.registry import require_schema
from rapo_jax.data.sources import SourceRecords, counts_in_words, read_records
from rapo_jax.errors import UserError, counted
from rapo_jax.messages import Record

Part = Literal["train", "eval"]


@dataclass(frozen=True)
class ConfiguredSource:
    """A source as the configuration has it; `option` is the key that holds its path."""

    option: str
    options: SourceOptions

    @property
    def said(self) -> str:
        return f"{self.option}={self.options.path}"


def sources_of_part(config: Config, part: Part) -> tuple[ConfiguredSource, ...]:
    """The sources of the training data or of the evaluation data. Raises UserError for a schema that does not exist."""
    data = config.data
    require_schema(data.schema)
    common = SourceOptions(
        path=data.path,
        split=data.split,
        revision=data.revision,
        schema=data.schema,
        rewards=data.rewards,
        columns=data.columns,
    )
    if part == "eval" and data.eval_path:
        rewards = data.eval_rewards or (CONSTANT if data.rewards == CONSTANT else "")
        options = replace(common, path=data.eval_path, split=data.eval_split, revision="", rewards=rewards)
        return (ConfiguredSource("data.eval_path", options),)
    if data.sources:
        for n, source in enumerate(data.sources):
            require_schema(source.schema, option=f"data.sources[{n}].schema")
        return tuple(ConfiguredSource(f"data.sources[{n}].path", source) for n, source in enumerate(data.sources))
    return (ConfiguredSource("data.path", common),)


def read_source(config: Config, source: ConfiguredSource, need: RowNeeds) -> SourceRecords:
    """The records of one source with their rewards and weights, without those that must not be trained on."""
    elsewhere = source.options.rewards or config.relabel.attributes
    need = replace(need, scores=need.scores and not elsewhere)
    found = read_records(source.options, need, option=source.option, data=config.data)
    found = keep_learnable(config, source, give_rewards(config, source, found))
    check_source_weights(config, found.records)
    if config.objective.needs("weight") and not (found.columns.weight or config.data.source_weights):
        raise UserError(
            f"objective.name={config.objective.name} weighs responses, and {source.said} has no weights: name their "
            "column with data.columns.weight=..., give data.source_weights={SOURCE: WEIGHT, ...}, or use sft."
        )
    if not found.records:
        dropped = counts_in_words(found.dropped)
        raise UserError(f"{source.said}: none of {counted(found.num_rows, 'row')} is left; dropped: {dropped}.")
    return found


def give_rewards(config: Config, source: ConfiguredSource, found: SourceRecords) -> SourceRecords:
    """The records with constants or a file's scores as their rewards, where the configuration asks for it."""
    rewards, option = source.options.rewards, source.option.replace("path", "rewards")
    if rewards == CONSTANT:
        constants = config.data.constant_rewards
        records = with_constants(found.records, *constants)
        return replace(found, records=records, reward_source="constants {:g} and {:g}".format(*constants))
    if not rewards:
        return found
    scores = read_scores(rewards, option=option)
    records = with_scores(found.records, scores, num_rows=found.num_rows, option=option)
    return replace(found, records=records, reward_source=origin_in_words(scores))


def keep_learnable(config: Config, source: ConfiguredSource, found: SourceRecords) -> SourceRecords:
    """The records with their source's name and weight, except those from dropped sources or with dropped questions."""
    data = config.data
    questions = mixture.read_questions(data.drop_prompts) if data.drop_prompts else frozenset()
    dropped, kept = Counter(found.dropped), []
    for record in found.records:
        record = replace(record, source=source.options.name or record.source)
        reason = mixture.contamination(record, sources=data.drop_sources, questions=questions)
        if reason:
            dropped[reason] += 1
        else:
            kept.append(replace(record, weight=record.weight * data.source_weights.get(record.source, 1.0)))
    return replace(found, records=kept, dropped=dict(dropped))


def check_source_weights(config: Config, records: Sequence[Record]) -> None:
    """Raises UserError for a weight of a source that no row is from, unless data.sources is set."""
    named = {record.source for record in records}
    unknown = [name for name in config.data.source_weights if name not in named]
    if unknown and not config.data.sources:
        known = (
            ", ".join(sorted(named)[:10]) if named != {""} else "none: name their column with data.columns.source=..."
        )
        raise UserError(f"data.source_weights names {', '.join(unknown)}, which no row is from; sources: {known}.")
