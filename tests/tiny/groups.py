"""Random groups of tokens, and the ways to lay them out: packed rows, one group a row, one sequence a row."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rapo_jax.batch import CHOSEN_SIDE, REJECTED_SIDE, Batch, Shape
from rapo_jax.batching.batch_plan import BatchPlan, Group, make_plan, materialise
from rapo_jax.batching.groups import what_is_scored
from rapo_jax.batching.steps import shuffled_steps
from rapo_jax.config.tree import Config
from tests.tiny.parameters import V


def random_groups(num: int, *, seed: int = 0, prompt: tuple[int, int] = (9, 30), response=(4, 20)) -> list[Group]:
    """Pairs with prompts and responses of random lengths in [low, high), all longer together than a window of 8."""
    random = np.random.default_rng(seed)
    tokens = lambda low, high: random.integers(0, V, random.integers(low, high)).astype(np.int32)  # noqa: E731
    groups = []
    for row in range(num):
        side = (CHOSEN_SIDE, REJECTED_SIDE)[int(random.integers(2))]
        groups.append(Group(tokens(*prompt), (tokens(*response), tokens(*response)), (8.0, 3.0), side, row))
    return groups


def one_group_a_row(groups: list[Group], *, row_length: int) -> tuple[list[list[int]], Shape]:
    scored = max(group.num_scored("responses") for group in groups)
    rows = [[index] for index in range(len(groups))]
    return rows, Shape(M=1, B=len(groups), T=row_length, S=scored, P=1, C=2)


def packed(groups: list[Group], *, row_length: int) -> tuple[list[list[int]], Shape]:
    everyone = [np.arange(len(groups))]
    (rows,) = make_plan(groups, everyone, row_length=row_length, rows_per_shard=1, num_row_shards=1).steps
    assert max(map(len, rows)) > 2, "rows must be shared for the test to mean anything"
    shape = make_plan(groups, everyone, row_length=row_length, rows_per_shard=len(rows), num_row_shards=1).shape
    return rows, shape


def microbatch(groups: list[Group], rows: list[list[int]], shape: Shape) -> Batch:
    """The first microbatch, [B, ...], as response_logps takes it."""
    batch = materialise(groups, rows, shape, mine=range(shape.B))
    return jax.tree.map(lambda x: jnp.asarray(x[0]) if np.ndim(x) else x, batch)


def by_group(x_BPc: Array, rows: list[list[int]]) -> Array:
    """[group, response], in the order of the groups' numbers."""
    places = sorted((member, b, p) for b, row in enumerate(rows) for p, member in enumerate(row))
    _, b, p = np.array(places).T
    return x_BPc[b, p, 1:]


def plain_sequences(groups: list[Group]) -> tuple[np.ndarray, np.ndarray]:
    """Every prompt + response as a row of its own: tokens [B, T], and where a token of a response stands."""
    sequences = [(g.prompt, y) for g in groups for y in g.continuations]
    length = max(len(x) + len(y) for x, y in sequences)
    tokens_BT = np.zeros((len(sequences), length), np.int32)
    is_response_BT = np.zeros((len(sequences), length), bool)
    for row, (x, y) in enumerate(sequences):
        tokens_BT[row, : len(x) + len(y)] = np.concatenate([x, y])
        is_response_BT[row, len(x) : len(x) + len(y)] = True
    return tokens_BT, is_response_BT


def plan_of(
    groups: list[Group], config: Config, *, num_steps: int, row_length: int, num_shards: int, context: int = 1
) -> BatchPlan:
    sizes = np.array([group.num_tokens for group in groups])
    steps = shuffled_steps(sizes, batch_size=config.train.batch_size, num_steps=num_steps, seed=config.seed)
    limits = {
        "row_length": row_length,
        "rows_per_shard": config.rows.per_shard,
        "num_row_shards": num_shards,
        "context": context,
    }
    return make_plan(groups, steps, **limits, scored=what_is_scored(config), split=config.rows.split or "never")
