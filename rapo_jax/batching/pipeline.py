"""The data pipeline of a run: records -> goal-conditioned preferences -> tokens -> batch plan -> arrays.

Everything read, dropped, tied or truncated is counted in the report.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grain
import numpy as np
from jaxtyping import Float, Int
from transformers import PreTrainedTokenizerBase

from rapo_jax.batch import Batch
from rapo_jax.batching.batch_plan import BatchPlan, Group, make_plan, materialise
from rapo_jax.batching.dataset import Dataset
from rapo_jax.batching.groups import as_groups, fingerprint_of_groups, what_is_scored
from rapo_jax.batching.kept import Place, kept
from rapo_jax.batching.origin import Kind, origin_of
from rapo_jax.batching.steps import find_twins, sequential_steps, shuffled_steps
from rapo_jax.chat.encoding import Item, encode_all
from rapo_jax.chat.goal_prompt import GoalPrompt, refuse_twice
from rapo_jax.config.tree import Config
from rapo_jax.data.configured import Part, sources_of_part
from rapo_jax.data.files import NoSuchSource
from rapo_jax.data.prepare import Prepared, prepare
from rapo_jax.data.relabelled import relabel_records
from rapo_jax.data.report import distributions_of, report_of
from rapo_jax.data.scaling import Scales
from rapo_jax.data.sources import counts_in_words
from rapo_jax.errors import UserError, counted

MOST_READ = 10**9  # pairs that a run reads, over all its steps


def read_part(config: Config, part: Part, *, scales: Scales | None = None) -> Prepared:
    """The records of the training or evaluation data, ready for relabelling.

    For evaluation data, `scales` are those of the training data; None fits them on these records.
    """
    return prepare(config, sources_of_part(config, part), part=part, scales=scales)


def load_training(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    *,
    goal_prompt: GoalPrompt,
    progress: bool = False,
    place: Place | None = None,
) -> Dataset:
    """The training data: data.path or data.sources, without the held-out prompts. In a `place` their tokens are kept."""
    how = {"goal_prompt": goal_prompt, "progress": progress}

    def make() -> Dataset:
        return tokenize_records(config, tokenizer, read_part(config, "train"), **how)

    if place is None:
        return make()
    what = {"goal_prompt": goal_prompt, "kind": "train", "least": place.least}
    return kept(place, "train", functools.partial(origin_of, config, tokenizer, **what), make=make)


def load_held_out(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    *,
    scales: Scales,
    goal_prompt: GoalPrompt,
    plain: bool = False,
    progress: bool = False,
    place: Place | None = None,
) -> Dataset | None:
    """The evaluation data: data.eval_path, or the prompts held out by data.eval_fraction; None without either.

    Relabelled like the training data or, with `plain`, in the source's own order of preference and without goals.
    `scales` are those of the training data. In a `place` their tokens are kept.
    """
    if not (config.data.eval_path or config.data.eval_fraction):
        return None
    asked = without_goals(config) if plain else config
    how = {"goal_prompt": goal_prompt, "progress": progress}

    def make() -> Dataset:
        return tokenize_records(asked, tokenizer, read_part(config, "eval", scales=scales), **how)

    with evaluation_source(config):
        if place is None:
            return make()
        kind: Kind = "eval_plain" if plain else "eval"
        what = {"goal_prompt": goal_prompt, "kind": kind, "scales": scales, "least": place.least}
        return kept(place, kind, functools.partial(origin_of, config, tokenizer, **what), make=make)


@contextmanager
def evaluation_source(config: Config) -> Iterator[None]:
    """Reads evaluation data. The error for a source that is nowhere says how to do without: the file that was started from may
    name one of its own beside a data.path of the user's."""
    try:
        yield
    except NoSuchSource as error:
        if config.data.eval_path in ("", config.data.path):
            raise
        raise UserError(
            f"{error} To evaluate nothing, set data.eval_path= (empty); with data.eval_fraction=0.05 beside that, a part of "
            "data.path is held out."
        ) from error


def without_goals(config: Config) -> Config:
    return replace(config, relabel=replace(config.relabel, goals=()))


def tokenize_records(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    *,
    goal_prompt: GoalPrompt,
    progress: bool = False,
) -> Dataset:
    """Relabels and tokenizes records. Raises UserError when nothing is left of them."""
    relabelled, num_ties = relabel_records(prepared.records, config)
    if config.relabel.goals:
        refuse_twice(goal_prompt, prepared.records)
    sentences = [goal_prompt.sentence(r.preference.goal, source=r.record.source) for r in relabelled]
    items = [
        Item(r.record.row, r.record.prompt, sentence, r.responses, r.more, r.record.tools)
        for r, sentence in zip(relabelled, sentences, strict=True)
    ]
    encoded, cuts = encode_all(
        tokenizer,
        items,
        placement=goal_prompt.placement,
        max_length=config.data.max_length,
        max_prompt_length=config.data.max_prompt_length,
        drop_unfaithful=config.data.bad_rows == "drop",
        progress=progress,
    )
    groups = as_groups([(r, e) for r, e in zip(relabelled, encoded, strict=True) if e is not None], config)
    if not groups:
        dropped = prepared.dropped | {"tied": num_ties} | cuts.dropped
        raise UserError(
            f"{prepared.said}: nothing is left of its {counted(prepared.num_rows, 'row')}, which gave {counted(len(items), 'preference')}; "
            f"dropped: {counts_in_words(dropped)}. What does not fit needs a larger data.max_length={config.data.max_length}; "
            f"ties are kept by relabel.ties=keep."
        )
    report = report_of(prepared, relabelled, num_ties, config) | {
        "goal_placement": goal_prompt.placement if config.relabel.goals else None,
        "groups": len(groups),
        "tokens": token_statistics(groups),
        "cut": dataclasses.asdict(cuts),
    }
    drawn = distributions_of(prepared.records)
    largest = max(int(text.max(initial=0)) for group in groups for text in (group.prompt, *group.continuations))
    fingerprint = fingerprint_of_groups(groups)
    return Dataset(groups, report, prepared.fingerprint, fingerprint, prepared.scales, drawn, largest)


def token_statistics(groups: Sequence[Group]) -> dict[str, dict[str, float]]:
    lengths = {
        "prompt": [len(group.prompt) for group in groups],
        "response": [len(response) for group in groups for response in group.continuations],
        "group": [group.num_tokens for group in groups],
    }
    return {
        name: {
            "mean": round(float(np.mean(values)), 1),
            "median": float(np.median(values)),
            "p95": float(np.percentile(values, 95)),
            "max": int(max(values)),
            "total": int(sum(values)),
        }
        for name, values in lengths.items()
    }


def plan_training(
    groups: Sequence[Group],
    config: Config,
    *,
    num_row_shards: int,
    context: int = 1,
    report: Mapping[str, Any] | None = None,
) -> BatchPlan:
    """The optimizer steps of the whole run. Raises UserError when a batch would need more groups than there are, and says
    what the data report has of rows that were dropped."""
    batch_size, num_groups = config.train.batch_size, len(groups)
    length = config.train.num_epochs, config.train.max_steps
    num_steps = number_of_steps(*length, batch_size=batch_size, num_groups=num_groups)
    if batch_size > num_groups or num_steps < 1:
        raise UserError(
            f"train.batch_size={batch_size} exceeds the {counted(num_groups, config.objective.unit.removesuffix('s'))} that the "
            f"data gives after relabelling (train.num_epochs={config.train.num_epochs:g}); lower train.batch_size or use more "
            f"data.{lost_in_words(report) if report else ''}"
        )
    sizes = np.array([group.num_tokens for group in groups])
    twins = find_twins(groups) if config.rows.twins == "together" and len(config.relabel.goals) > 1 else None
    steps = shuffled_steps(sizes, batch_size=batch_size, num_steps=num_steps, seed=config.seed, twins=twins)
    return pack_steps(groups, steps, config, num_row_shards=num_row_shards, context=context)


def lost_in_words(report: Mapping[str, Any]) -> str:
    """What a data report has of rows and preferences that were left out, and why; "" where none were."""
    rows = report["rows_dropped"] | {"tied": report["ties"]["dropped"]}
    preferences = report["cut"]["dropped"]
    lost = {"row": (report["rows_read"], rows), "preference": (report["cut"]["num_items"], preferences)}
    said = [
        f" Of {counted(number, what)}, {sum(reasons.values()):,} {'was' if sum(reasons.values()) == 1 else 'were'} left out: "
        f"{counts_in_words(reasons)}."
        for what, (number, reasons) in lost.items()
        if sum(reasons.values())
    ]
    longer = " A larger data.max_length keeps more of them." if preferences else ""
    return "".join(said) + longer


def number_of_steps(num_epochs: float, max_steps: int | None, *, batch_size: int, num_groups: int) -> int:
    """The number of optimizer steps of a run, incomplete batches left out. Raises UserError for more than can be listed."""
    num_read = max_steps * batch_size if max_steps else num_epochs * num_groups
    if num_read > MOST_READ:
        setting = f"train.max_steps={max_steps}" if max_steps else f"train.num_epochs={num_epochs:g}"
        raise UserError(
            f"{setting} reads {num_read:.3g} pairs, with train.batch_size={batch_size} and {counted(num_groups, 'pair')} of data, and "
            f"the order of at most {MOST_READ:,} is made; lower it."
        )
    return max_steps or int(num_epochs * num_groups / batch_size)


def plan_evaluation(groups: Sequence[Group], config: Config, *, num_row_shards: int, context: int = 1) -> BatchPlan:
    """Every group once, in order."""
    steps = sequential_steps(len(groups), batch_size=config.train.batch_size)
    try:
        return pack_steps(groups, steps, config, num_row_shards=num_row_shards, context=context)
    except UserError as error:
        raise UserError(f"data.eval_path={config.data.eval_path}: {error}") from error


def pack_steps(
    groups: Sequence[Group],
    steps: Sequence[Int[np.ndarray, "_"]],
    config: Config,
    *,
    num_row_shards: int,
    context: int = 1,
) -> BatchPlan:
    return make_plan(
        groups,
        steps,
        row_length=config.rows.length,
        rows_per_shard=config.rows.per_shard,
        num_row_shards=num_row_shards,
        context=context,
        scored=what_is_scored(config),
        split=config.rows.split or "auto",
    )


def batches(
    groups: Sequence[Group],
    plan: BatchPlan,
    mine: Sequence[int],
    *,
    reference: Float[np.ndarray, "G A"] | None = None,
) -> Callable[[int], Iterator[Batch[np.ndarray]]]:
    """A function k -> iterator over the batches of steps k, k + 1, ..., prefetched by background threads.

    `mine` are the rows of a microbatch that this process supplies; `reference` is as in `materialise`.
    """

    def made_of(step: int) -> Batch[np.ndarray]:
        moved = plan.moved.get(step, ())
        return materialise(groups, plan.steps[step], plan.shape, mine=mine, reference=reference, moved=moved)

    def start(first: int = 0) -> Iterator[Batch[np.ndarray]]:
        steps = grain.MapDataset.source(range(first, len(plan.steps)))
        return iter(steps.map(made_of).to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))

    return start
