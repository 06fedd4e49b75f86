"""Which tokens of a row see which: the one rule that every attention kernel implements.

No scores are computed here; the rule becomes a mask, bool [B, T, U].
"""

from dataclasses import dataclass

import jax
from jax import Array
from jaxtyping import Bool, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Layout:
    """Position and membership of a row's tokens, int32 [B, T] each.

    `index` is the order that causality follows: the storage order, or where tokens are dealt to devices their position, with
    padding after all tokens. `position` is the rotary position: every response of a group
    continues from the end of the prompt, so siblings share positions. `group` tells prompts apart (0 is padding);
    `branch` is 0 for a group's prompt and 1..C for its responses.
    """

    index: Array
    position: Array
    group: Array
    branch: Array


def sees(queries: Layout, keys: Layout) -> Bool[Array, "B T U"]:
    """A token sees its own prompt and its own branch up to itself, never a sibling and never another group.

    >>> # one group: prompt p0 p1, responses a0 a1 and b0
    >>> #      p0 p1 a0 a1 b0
    >>> # a1    x  x  x  x  .
    >>> # b0    x  x  .  .  x

    Padding sees itself alone, so that its softmax stays finite.
    """
    query = jax.tree.map(lambda x: x[:, :, None], queries)
    key = jax.tree.map(lambda x: x[:, None, :], keys)
    same_group = (query.group == key.group) & (query.group > 0)
    on_path = (key.branch == 0) | (key.branch == query.branch)
    return (same_group & on_path & (key.index <= query.index)) | ((query.index == key.index) & (query.group == 0))


def in_window(queries: Layout, keys: Layout, window: Int[Array, ""] | int) -> Bool[Array, "B T U"]:
    """Whether a key is fewer than `window` positions before its query, the query's own position included."""
    return queries.position[:, :, None] - keys.position[:, None, :] < window
