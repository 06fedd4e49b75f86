"""How likely a model finds responses under every goal, without generating anything: log pi(y | x, g) of scored responses for no
goal, a grid of goals, the responses' own rewards, and the highest goal.

The suites in suites.py are functions of these tables. Passes are kept in the output directory, so that repeating a command
computes nothing twice.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from rapo_jax.batching.batch_plan import Group
from rapo_jax.batching.groups import NAN
from rapo_jax.chat.encoding import Encoded, Item, encode_all
from rapo_jax.chat.goal_prompt import GoalPrompt, configured_goal_prompt
from rapo_jax.chat.templates import resolve_placement
from rapo_jax.config.tree import Config
from rapo_jax.distributed import is_first, require_same, say
from rapo_jax.errors import UserError, counted
from rapo_jax.messages import Record
from rapo_jax.opened import ClosedModel, OpenedTokenizer, Rendering, require_ids_fit
from rapo_jax.score.responses import one_pass


@dataclass(frozen=True)
class Asked:
    """A model to evaluate, what tables call it, and how it is asked for a goal: its own way or, where none is known, the
    configuration's."""

    label: str
    model: ClosedModel
    opened: OpenedTokenizer
    goal_prompt: GoalPrompt


@dataclass(frozen=True)
class Likelihoods:
    """Log-probabilities (nats) of pairs of responses, summed over tokens. `rewards_N2` are on the goal scale, the chosen
    response's first; `grid` are the goals of `grid_NG2`; own_N22[n, i, j] is response j asked for with the reward of i."""

    model: str
    rewards_N2: Float[np.ndarray, "N 2"]
    tokens_N2: Int[np.ndarray, "N 2"]
    grid: tuple[float, ...]
    none_N2: Float[np.ndarray, "N 2"]
    grid_NG2: Float[np.ndarray, "N G 2"]
    own_N22: Float[np.ndarray, "N 2 2"]
    highest_N2: Float[np.ndarray, "N 2"]


def ask(model: ClosedModel, config: Config, *, label: str) -> Asked:
    """Opens a model's tokenizer. Raises UserError for reward models, and for goals that are several attributes."""
    if model.spec.scored:
        raise UserError(f"{model.name} is a reward model, which gives texts no probability; name a language model.")
    opened = model.open_tokenizer(Rendering(config.data.chat_template, config.data.template_options))
    prompt = opened.goal_prompt
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
    return Asked(label, model, opened, prompt)


def goals_of(record: Record, grid: Sequence[float], highest: float) -> list[float | None]:
    """What is asked for: nothing, the grid, each response's reward, the highest goal."""
    assert record.rewards is not None  # rows without scores were refused when they were read
    return [None, *grid, *record.rewards, highest]


def encode(asked: Asked, records: Sequence[Record], config: Config, *, grid: Sequence[float]) -> list[list[Encoded]]:
    """The record's tokens under each of `goals_of`; [] for one that is too long under any of them."""
    prompt, items, sizes = asked.goal_prompt, [], []
    for record in records:
        goals = goals_of(record, grid, prompt.goal_max)
        sizes.append(len(goals))
        for goal in goals:
            sentence = prompt.sentence(goal, source=record.source)
            items.append(Item(record.row, record.prompt, sentence, record.responses, record.more or (), record.tools))
    found, _ = encode_all(
        asked.opened.tokenizer,
        items,
        placement=prompt.placement,
        max_length=config.data.max_length,
        max_prompt_length=config.data.max_prompt_length,
        progress=is_first(),
    )
    by_record, start = [], 0
    for size in sizes:
        each = [one for one in found[start : start + size] if one is not None and not any(one.response_tokens_cut)]
        by_record.append(each if len(each) == size else [])
        start += size
    return by_record


def likelihoods(
    models: Sequence[Asked], records: Sequence[Record], config: Config, *, grid: Sequence[float], out: Path
) -> list[Likelihoods]:
    """The tables of several models over the same records: those that fit data.max_length in the tokens of each.

    Raises Interrupted, and UserError where no record is left.
    """
    encoded = [encode(asked, records, config, grid=grid) for asked in models]
    fits = [n for n in range(len(records)) if all(of_model[n] for of_model in encoded)]
    if left_out := len(records) - len(fits):
        say(f"  note   {counted(left_out, 'pair')} longer than data.max_length={config.data.max_length} left out")
    if not fits:
        raise UserError(
            f"none of {counted(len(records), 'pair')} fits data.max_length={config.data.max_length}; raise it."
        )
    kept = [records[n] for n in fits]
    return [
        one_table(asked, kept, [of_model[n] for n in fits], config, grid=grid, out=out)
        for asked, of_model in zip(models, encoded, strict=True)
    ]


def one_table(
    asked: Asked,
    records: Sequence[Record],
    encoded: Sequence[Sequence[Encoded]],
    config: Config,
    *,
    grid: Sequence[float],
    out: Path,
) -> Likelihoods:
    """One model's table. A goal that is asked for twice, because it is a reward and on the grid, is computed once."""
    groups: list[Group] = []
    places = []
    for record, each in zip(records, encoded, strict=True):
        known: dict[float | None, int] = {}
        for goal, one in zip(goals_of(record, grid, asked.goal_prompt.goal_max), each, strict=True):
            if goal not in known:
                known[goal] = len(groups)
                groups.append(Group(one.prompt, one.responses, (NAN, NAN), 0, record.row))
            places.append(known[goal])
    texts = (tokens for group in groups for tokens in (group.prompt, *group.responses))
    require_ids_fit(texts, asked.opened.tokenizer, asked.model.spec, said=asked.model.name)
    require_same({f"the pairs to evaluate, in tokens of {asked.model.name}": len(groups)})
    name = file_name(asked.model.name)
    logps_G2 = one_pass(name, asked.model, groups=groups, kept=out, config=config, said=asked.label)[:, 1:]
    table_NC2 = logps_G2[np.array(places)].reshape(len(records), -1, 2).astype(np.float64)
    G = len(grid)
    return Likelihoods(
        model=asked.label,
        rewards_N2=np.array([record.rewards for record in records], np.float64),
        tokens_N2=np.array([[len(response) for response in each[0].responses] for each in encoded]),
        grid=tuple(grid),
        none_N2=table_NC2[:, 0],
        grid_NG2=table_NC2[:, 1 : 1 + G],
        own_N22=table_NC2[:, 1 + G : 3 + G],
        highest_N2=table_NC2[:, 3 + G],
    )


def file_name(model: str) -> str:
    """A file name for a model's pass."""
    return "logps-" + re.sub(r"[^\w.-]+", "-", model).strip("-")[-80:]


def labels_of(names: Sequence[str]) -> list[str]:
    """The shortest ends of paths that tell them apart: ["runs/dpo", "runs/ra-dpo"] -> ["dpo", "ra-dpo"]."""
    parts = [[part for part in re.split(r"[/\\]", name) if part] or [name] for name in names]
    for length in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(each[-length:]) for each in parts]
        if len(set(labels)) == len(labels):
            return labels
    return list(names)
