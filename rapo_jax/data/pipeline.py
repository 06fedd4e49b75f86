"""From a source to batches: records -> goal-conditioned preferences -> tokens -> a plan -> arrays, with the report.

Everything that was read, dropped, tied or cut is counted in the report.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import grain
import numpy as np
from transformers import PreTrainedTokenizerBase

from rapo_jax.batch import BEST_SIDE, CHOSEN_SIDE, NO_SIDE, REJECTED_SIDE, Batch, Scored
from rapo_jax.config import Config
from rapo_jax.data.chat import Placement
from rapo_jax.data.encode import Encoded, Item, encode_all
from rapo_jax.data.packing import Group, Plan, make_plan, materialise, sequential_steps, shuffled_steps
from rapo_jax.data.sources import Columns, Record, Source, counts, read_records
from rapo_jax.errors import UserError
from rapo_jax.objectives import OBJECTIVES
from rapo_jax.relabel import SIDES, Preference, goal_reward, goal_text, relabel

SIDE_CODE = {None: NO_SIDE, "chosen": CHOSEN_SIDE, "rejected": REJECTED_SIDE, "best": BEST_SIDE}
NAN = float("nan")
NOTHING = np.zeros(0, np.int32)


@dataclass(frozen=True)
class Dataset:
    """Tokenized groups in the order of the source, what became of the source's rows, and hashes of both."""

    groups: list[Group]
    report: dict
    source_fingerprint: str  # of texts and scores as they were read
    fingerprint: str  # of all that the step will see


@dataclass(frozen=True)
class Relabelled:
    """A record with one preference of it; the order decides which response comes first."""

    record: Record
    preference: Preference

    def goal_sentence(self, config: Config) -> str | None:
        goal = self.preference.goal
        if goal is None:
            return None
        return goal_text(goal, template=config.relabel.template, goal_max=config.relabel.goal_max)

    @property
    def responses(self) -> tuple[str, ...]:
        return tuple(self.record.responses[i] for i in self.preference.order)

    @property
    def rewards(self) -> tuple[float, ...]:
        rewards = self.record.rewards
        return tuple(NAN if rewards is None else rewards[i] for i in self.preference.order)

    weight: float = 1.0
    labels: tuple[bool, ...] | None = None

    @property
    def goal_rewards(self) -> tuple[float, ...]:
        """Rewards under the goal, R(x, y, g) = -(g - r)^2, or as they are where none is asked for."""
        goal = self.preference.goal
        return self.rewards if goal is None else tuple(goal_reward(goal, reward) for reward in self.rewards)


def read_source(config: Config, path: str, *, split: str, option: str = "data.path") -> Source:
    """The records of a source, as many responses each as the objective compares."""
    columns = Columns(**dataclasses.asdict(config.data.columns))
    return read_records(
        path,
        split=split,
        columns=columns,
        scores_required=bool(config.relabel.goals),
        num_responses={"one": 1}.get(config.objective.responses, 2),
        bad_rows=config.data.bad_rows,
        option=option,
    )


def relabel_records(records: Sequence[Record], config: Config) -> tuple[list[Relabelled], int]:
    """All preferences of all records in order, and the number of tied records that were dropped."""
    preferences, num_ties = [], 0
    for record in records:
        found = preferences_of(record, config)
        num_ties += not found
        preferences += [Relabelled(record, preference) for preference in found]
    return preferences, num_ties


def preferences_of(record: Record, config: Config) -> list[Preference]:
    """One response is its own preference, at its own reward where goals are asked for; two go through the paper's rule."""
    goals = config.relabel.goals
    if len(record.responses) == 1:
        goal = record.rewards[0] if goals else None
        return [Preference(goal=goal, goal_of="chosen" if goals else None, order=(0,))]
    return relabel(record.rewards, goals=goals, ties=config.relabel.ties)


def load_dataset(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    *,
    path: str,
    split: str,
    placement: Placement,
    progress: bool = False,
    option: str = "data.path",
) -> Dataset:
    """Reads, relabels and tokenizes a source. Raises UserError when nothing is left of it, naming `option`."""
    source = read_source(config, path, split=split, option=option)
    relabelled, num_ties = relabel_records(source.records, config)
    items = [Item(r.record.row, r.record.prompt, r.goal_sentence(config), r.responses) for r in relabelled]
    encoded, cuts = encode_all(
        tokenizer,
        items,
        placement=placement,
        max_length=config.data.max_length,
        max_prompt_length=config.data.max_prompt_length,
        progress=progress,
    )
    groups = as_groups([(r, e) for r, e in zip(relabelled, encoded, strict=True) if e is not None], config)
    if not groups:
        dropped = source.dropped | {"ties": num_ties} | cuts.dropped
        raise UserError(
            f"{option}={path}: nothing is left of its {source.num_rows} rows, which gave {len(items)} preferences; dropped: "
            f"{counts(dropped)}. What does not fit needs a larger data.max_length={config.data.max_length}; "
            f"ties are kept by relabel.ties=keep."
        )
    report = {
        "path": path,
        "rows_read": source.num_rows,
        "rows_dropped": source.dropped,
        "ties": {"found": count_ties(source.records), "dropped": num_ties},
        "scores_from": source.reward_source,
        "scores": score_histogram(source.records),
        "label_against_scores": sum(r.rewards is not None and r.rewards[0] < r.rewards[-1] for r in source.records),
        "preferences": dict(Counter(r.preference.goal_of or "no_goal" for r in relabelled)),
        "goal_placement": placement if config.relabel.goals else None,
        "groups": len(groups),
        "tokens": token_statistics(groups),
        "cut": dataclasses.asdict(cuts),
    }
    return Dataset(groups, report, fingerprint_of_records(source.records), fingerprint_of_groups(groups))


def as_groups(kept: Sequence[tuple[Relabelled, Encoded]], config: Config) -> list[Group]:
    """Groups of one number of responses each; what a group lacks is empty.

    A labelled response takes the first place where it is desirable, else the second; the third is an answer to another
    prompt, for the divergence. Where some groups are the regulariser's, at the highest goal, weights make the mean over
    all groups the mean over these plus the mean over the others.
    """
    groups = [as_group(relabelled, encoded, config) for relabelled, encoded in kept]
    num_best = sum(group.side == BEST_SIDE for group in groups)
    if num_best:
        weights = {True: len(groups) / num_best, False: len(groups) / max(1, len(groups) - num_best)}
        groups = [replace(group, weight=group.weight * weights[group.side == BEST_SIDE]) for group in groups]
    if config.objective.needs("divergence"):
        groups = with_answers_to_others(groups, config.data.max_length)
    width = max((len(group.responses) for group in groups), default=0)
    return [padded(group, max(width, 1 if config.objective.responses == "one" else 2)) for group in groups]


def as_group(relabelled: Relabelled, encoded: Encoded, config: Config) -> Group:
    responses, rewards = encoded.responses, relabelled.goal_rewards
    if config.objective.responses == "labelled" and len(responses) == 1:
        desirable = relabelled.labels is None or relabelled.labels[0]
        responses, rewards = (
            ((responses[0], NOTHING), (*rewards, NAN)) if desirable else ((NOTHING, responses[0]), (NAN, *rewards))
        )
    return Group(
        prompt=encoded.prompt,
        responses=responses,
        rewards=rewards,
        side=SIDE_CODE[relabelled.preference.goal_of],
        row=relabelled.record.row,
        weight=relabelled.weight,
    )


def padded(group: Group, width: int) -> Group:
    """The group with as many more empty responses as it takes."""
    missing = width - len(group.responses)
    if not missing:
        return group
    return replace(
        group, responses=(*group.responses, *[NOTHING] * missing), rewards=(*group.rewards, *[NAN] * missing)
    )


def with_answers_to_others(groups: Sequence[Group], max_length: int) -> list[Group]:
    """Every group with a third response, the one of the group before it in the source, cut to `max_length`.

    The group before the first is the last. Groups of one row have the same prompt and are skipped over; the answer is the
    chosen one where there is one.
    """
    pairs = [padded(group, 2) for group in groups]
    added = []
    for n, group in enumerate(pairs):
        other = next((pairs[n - k] for k in range(1, len(pairs)) if pairs[n - k].row != group.row), None)
        if other is None:
            raise UserError(
                "objective.name=kto compares with answers to other prompts, and the data has a single row; add rows or "
                "choose another objective."
            )
        answer = next(response for response in other.responses if len(response))
        answer = answer[: max_length - len(group.prompt)]
        added.append(replace(group, responses=(*group.responses, answer), rewards=(*group.rewards, NAN)))
    return added


def fingerprint_of_records(records: Sequence[Record]) -> str:
    digest = hashlib.sha256()
    for record in records:
        turns = [(message.role, message.content) for message in record.prompt]
        digest.update(json.dumps([turns, record.responses, record.rewards]).encode())
    return digest.hexdigest()


def fingerprint_of_groups(groups: Sequence[Group]) -> str:
    """sha256 over all that the step will see: tokens, order, goals and rewards."""
    digest = hashlib.sha256()
    for group in groups:
        for tokens in (group.prompt, *group.responses):
            digest.update(np.int64(len(tokens)).tobytes() + tokens.tobytes())
        digest.update(np.float64([group.side, group.weight, *group.rewards]).tobytes())
    return digest.hexdigest()


def count_ties(records: Sequence[Record]) -> int:
    return sum(r.rewards is not None and len(r.rewards) == 2 and r.rewards[0] == r.rewards[1] for r in records)


def score_histogram(records: Sequence[Record]) -> dict[str, dict[str, int]]:
    """How many responses of each side have a score in [n, n + 1), by n."""
    scored = [record.rewards for record in records if record.rewards is not None]
    if not scored:
        return {}
    sides = zip(SIDES, zip(*scored, strict=True), strict=False)
    return {
        side: {str(n): k for n, k in sorted(Counter(int(np.floor(s)) for s in scores).items())}
        for side, scores in sides
    }


def token_statistics(groups: Sequence[Group]) -> dict[str, dict[str, float]]:
    lengths = {
        "prompt": [len(group.prompt) for group in groups],
        "response": [len(response) for group in groups for response in group.responses],
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


def plan_training(groups: Sequence[Group], config: Config, *, num_row_shards: int) -> Plan:
    """The optimizer steps of the whole run. Raises UserError when a batch would need more groups than there are."""
    batch_size, num_groups = config.train.batch_size, len(groups)
    num_steps = config.train.max_steps or int(config.train.num_epochs * num_groups / batch_size)
    if batch_size > num_groups or num_steps < 1:
        raise UserError(
            f"train.batch_size={batch_size} exceeds the {num_groups} pairs that the data gives after relabelling "
            f"(train.num_epochs={config.train.num_epochs:g}); lower train.batch_size or use more data."
        )
    sizes = np.array([group.num_tokens for group in groups])
    steps = shuffled_steps(sizes, batch_size=batch_size, num_steps=num_steps, seed=config.seed)
    return pack_steps(groups, steps, config, num_row_shards=num_row_shards)


def plan_reference(groups: Sequence[Group], members: np.ndarray, config: Config, *, num_row_shards: int) -> Plan:
    """Rows of `members`, one microbatch a step, for a pass whose results are wanted group by group."""
    whole = pack_steps(groups, [members], config, num_row_shards=num_row_shards)
    (rows,), B = whole.steps, whole.shape.B
    steps = [rows[start : start + B] for start in range(0, len(rows), B)]
    return replace(whole, steps=steps, shape=replace(whole.shape, M=1))


def plan_evaluation(groups: Sequence[Group], config: Config, *, num_row_shards: int) -> Plan:
    """Every group once, in order."""
    steps = sequential_steps(len(groups), batch_size=config.train.batch_size)
    try:
        return pack_steps(groups, steps, config, num_row_shards=num_row_shards)
    except UserError as error:
        raise UserError(f"data.eval_path={config.data.eval_path}: {error}") from error


def pack_steps(groups: Sequence[Group], steps: list[np.ndarray], config: Config, *, num_row_shards: int) -> Plan:
    return make_plan(
        groups,
        steps,
        row_length=config.rows.length,
        rows_per_shard=config.rows.per_shard,
        num_row_shards=num_row_shards,
        scored=what_is_scored(config),
    )


def what_is_scored(config: Config) -> Scored:
    if OBJECTIVES[config.objective.name].is_reward_model:
        return "last"
    return "prompt_too" if config.objective.needs("prompt") else "responses"


def batches(
    groups: Sequence[Group], plan: Plan, mine: Sequence[int], *, reference: np.ndarray | None = None
) -> Callable[[int], Iterator[Batch]]:
    """k -> the batches of steps k, k + 1, ... to the plan's end, prepared by a few threads ahead of their use.

    `mine` are the rows of a microbatch that this process supplies; `reference` as in `materialise`.
    """

    def start(first: int = 0) -> Iterator[Batch]:
        steps = grain.MapDataset.source(plan.steps[first:])
        made = steps.map(lambda rows: materialise(groups, rows, plan.shape, mine=mine, reference=reference))
        return iter(made.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))

    return start
