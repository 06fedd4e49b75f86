"""How likely a model finds responses under every goal, without generating anything: log pi(y | x, g) of scored responses for no
goal, a grid of goals, the responses' own rewards, and the highest goal.

The suites in suites.py are functions of these tables. Passes are kept in the output directory, each under a hash of its model's
name and its tokens, so that repeating a command computes nothing twice.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from rapo_jax.batching.batch_plan import Group
from rapo_jax.batching.groups import NAN, fingerprint_of_groups
from rapo_jax.chat.dates import pin
from rapo_jax.chat.encoding import Encoded, Item, encode_all
from rapo_jax.chat.goal_prompt import GoalPrompt, configured_goal_prompt
from rapo_jax.chat.templates import resolve_placement
from rapo_jax.config.tree import Config
from rapo_jax.distributed import is_first, require_same, say
from rapo_jax.errors import UserError, counted
from rapo_jax.messages import Record
from rapo_jax.opened import ClosedModel, OpenedTokenizer, Rendering, require_ids_fit
from rapo_jax.runs.trained import RunModel
from rapo_jax.score.by_model import one_pass


@dataclass(frozen=True)
class Asked:
    """A model to evaluate, what tables call it, and how it is asked for a goal: its own way or, where none is known, the
    configuration's."""

    label: str
    model: ClosedModel
    opened: OpenedTokenizer
    goal_prompt: GoalPrompt


@dataclass(frozen=True)
class Tokens:
    """Pairs in the tokens of one model. `rows` are the indices of the pairs that fit; places_RC[r, c] is the group of row r
    under the goal c of `goals_of`. A goal that occurs twice, because it is a reward and on the grid, is one group."""

    asked: Asked
    rows: list[int]
    groups: list[Group]
    places_RC: Int[np.ndarray, "R C"]


@dataclass(frozen=True)
class Likelihoods:
    """Log-probabilities (nats) of pairs of responses, summed over tokens. `rewards_N2` are on the goal scale, the better
    response's first; `prompt_N` numbers the prompts; `grid` are the goals of `grid_NG2`; own_N22[n, i, j] is response j asked
    for with the reward of i."""

    model: str
    prompt_N: Int[np.ndarray, " N"]
    rewards_N2: Float[np.ndarray, "N 2"]
    tokens_N2: Int[np.ndarray, "N 2"]
    grid: tuple[float, ...]
    none_N2: Float[np.ndarray, "N 2"]
    grid_NG2: Float[np.ndarray, "N G 2"]
    own_N22: Float[np.ndarray, "N 2 2"]
    highest_N2: Float[np.ndarray, "N 2"]


def ask(model: ClosedModel, config: Config, *, label: str) -> Asked:
    """Opens a model's tokenizer. Raises UserError for reward models, for goals that are several attributes, and for a goal scale
    that is not the configuration's."""
    if model.spec.scored:
        raise UserError(f"{model.name} is a reward model, which gives texts no probability; name a language model.")
    opened = model.open_tokenizer(Rendering(config.data.chat_template, config.data.template_options))
    prompt = opened.goal_prompt
    if config.data.date:
        opened.tokenizer.chat_template = pin(prompt.chat_template, config.data.date)
    if not opened.has_own_goal_prompt:
        placement = resolve_placement(opened.tokenizer, config.relabel.placement)
        prompt = configured_goal_prompt(config.relabel, placement=placement, chat_template=prompt.chat_template)
        say(
            f"  note   {model.name} does not say how it is asked for a goal; it is asked as CONFIG says (relabel.template)"
        )
    if prompt.attributes:
        raise UserError(
            f"{model.name} is asked for {', '.join(prompt.attributes)}, each with a goal of its own; evaluate takes models that "
            "are asked for one score."
        )
    own, wanted = (prompt.goal_min, prompt.goal_max), (config.relabel.goal_min, config.relabel.goal_max)
    if own != wanted:
        raise UserError(
            f"{model.name} knows goals from {own[0]:g} to {own[1]:g}, and the data's scores go from {wanted[0]:g} to {wanted[1]:g} "
            "(relabel.goal_min, relabel.goal_max); give the configuration that it was trained with."
        )
    return Asked(label, model, opened, prompt)


def goals_of(record: Record, grid: Sequence[float], highest: float) -> list[float | None]:
    """What is asked for: nothing, the grid, each response's reward, the highest goal."""
    assert record.rewards is not None  # rows without scores were refused when they were read
    return [None, *grid, *record.rewards, highest]


def tokenize(asked: Asked, records: Sequence[Record], config: Config, *, grid: Sequence[float]) -> Tokens:
    """The pairs in a model's tokens, those left out that are cut under any goal or have two responses of the same tokens.

    Raises UserError for responses that the template does not reproduce, unless data.bad_rows=drop, and for token ids beyond
    the vocabulary.
    """
    prompt, items = asked.goal_prompt, []
    different = [list(dict.fromkeys(goals_of(record, grid, prompt.goal_max))) for record in records]
    for record, goals in zip(records, different, strict=True):
        for goal in goals:
            sentence = prompt.sentence(goal, source=record.source)
            items.append(Item(record.row, record.prompt, sentence, record.responses, record.more or (), record.tools))
    encoded, _ = encode_all(
        asked.opened.tokenizer,
        items,
        placement=prompt.placement,
        max_length=config.data.max_length,
        max_prompt_length=config.data.max_prompt_length,
        drop_unfaithful=config.data.bad_rows == "drop",
        progress=is_first(),
    )
    rows, groups, places, start = [], [], [], 0
    for number, (record, goals) in enumerate(zip(records, different, strict=True)):
        found = [one for one in encoded[start : start + len(goals)] if one is not None and is_whole(one)]
        start += len(goals)
        if len(found) < len(goals):
            continue
        at = {goal: len(groups) + index for index, goal in enumerate(goals)}
        groups += [Group(one.prompt, one.responses, (NAN, NAN), 0, record.row) for one in found]
        rows.append(number)
        places.append([at[goal] for goal in goals_of(record, grid, prompt.goal_max)])
    texts = (tokens for group in groups for tokens in (group.prompt, *group.responses))
    require_ids_fit(texts, asked.opened.tokenizer, asked.model.spec, said=asked.model.name)
    return Tokens(asked, rows, groups, np.array(places, np.int64).reshape(len(rows), len(grid) + 4))


def is_whole(encoded: Encoded) -> bool:
    return not encoded.prompt_tokens_cut and not any(encoded.response_tokens_cut)


def common_rows(tokens: Sequence[Tokens], config: Config, *, num_pairs: int) -> list[int]:
    """The pairs that fit in the tokens of every model; says how many do not. Raises UserError where there are none."""
    common = sorted(set.intersection(*(set(each.rows) for each in tokens)))
    limits = f"data.max_length={config.data.max_length} or data.max_prompt_length={config.data.max_prompt_length}"
    if not common:
        raise UserError(f"none of {counted(num_pairs, 'pair')} fits {limits}; raise them.")
    if len(common) < num_pairs:
        say(
            f"  note   {num_pairs - len(common):,} of {counted(num_pairs, 'pair')} left out: longer than {limits}, or two responses of the "
            "same tokens"
        )
    return common


def likelihoods(
    tokens: Tokens,
    model: ClosedModel,
    records: Sequence[Record],
    config: Config,
    *,
    grid: Sequence[float],
    rows: Sequence[int],
    out: Path,
) -> Likelihoods:
    """The table of `rows`, by a model that may be another than the one whose tokens these are: its reference, which has to read
    the same texts. Raises Interrupted, and UserError."""
    fingerprint = fingerprint_of_groups(tokens.groups)
    require_same({f"the pairs to evaluate, in tokens of {tokens.asked.label}": fingerprint[:12]})
    step = model.step_and_digest[0] if isinstance(model, RunModel) else None
    name, said = column_name(model.name, f"{step} {fingerprint}"), tokens.asked.label
    if model is not tokens.asked.model:
        said = f"{model.name} on the texts of {said}"
    logps_G2 = one_pass(name, model, groups=tokens.groups, kept=out, config=config, said=said)[:, 1:]
    at = {row: place for place, row in enumerate(tokens.rows)}
    places_NC = tokens.places_RC[[at[row] for row in rows]]
    table_NC2, G = logps_G2[places_NC].astype(np.float64), len(grid)
    prompts = {prompt: number for number, prompt in enumerate(dict.fromkeys(records[row].prompt for row in rows))}
    first = [tokens.groups[places[0]] for places in places_NC]
    return Likelihoods(
        model=tokens.asked.label,
        prompt_N=np.array([prompts[records[row].prompt] for row in rows]),
        rewards_N2=np.array([records[row].rewards for row in rows], np.float64),
        tokens_N2=np.array([[len(response) for response in group.responses] for group in first]),
        grid=tuple(grid),
        none_N2=table_NC2[:, 0],
        grid_NG2=table_NC2[:, 1 : 1 + G],
        own_N22=table_NC2[:, 1 + G : 3 + G],
        highest_N2=table_NC2[:, 3 + G],
    )


def column_name(model: str, belongs_to: str) -> str:
    """The file name of a model's pass: readable, and of no other model or tokens."""
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", model).strip("-.")[-40:]
    return f"logps-{readable}-{hashlib.sha256(f'{model} {belongs_to}'.encode()).hexdigest()[:12]}"


def labels_of(names: Sequence[str]) -> list[str]:
    """The shortest ends of paths that tell them apart: ["runs/dpo", "runs/ra-dpo"] -> ["dpo", "ra-dpo"]."""
    parts = [[part for part in re.split(r"[/\\]", name) if part] or [name] for name in names]
    for length in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(each[-length:]) for each in parts]
        if len(set(labels)) == len(labels):
            return labels
    return list(names)
