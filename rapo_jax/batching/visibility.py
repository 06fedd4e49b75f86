"""The tiles of a row's mask in which something is visible, counted from runs of tokens: a mask of 131,072 x 131,072 is never made."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int


@dataclass(frozen=True)
class Runs:
    """Pieces of prompts and responses within one tile: the number of the tile, group (0 is padding) and branch, and the first and
    last position; of padding, the place in the row."""

    tile: Int[np.ndarray, "runs"]
    group: Int[np.ndarray, "runs"]
    branch: Int[np.ndarray, "runs"]
    first: Int[np.ndarray, "runs"]
    last: Int[np.ndarray, "runs"]


def runs_of(
    position_T: Int[np.ndarray, "T"], group_T: Int[np.ndarray, "T"], branch_T: Int[np.ndarray, "T"], *, size: int
) -> Runs:
    """The runs of a row in tiles of this size, in whatever order its tokens are stored."""
    place = np.arange(len(group_T))
    position_T = np.where(group_T > 0, position_T, place)
    joins = (np.diff(group_T) == 0) & (np.diff(branch_T) == 0) & (np.diff(position_T) == 1) & (place[1:] % size > 0)
    starts = np.flatnonzero(np.concatenate([[True], ~joins]))
    ends = np.append(starts[1:], len(group_T)) - 1
    return Runs(starts // size, group_T[starts], branch_T[starts], position_T[starts], position_T[ends])


def visible_tiles_of_row(
    position_T: Int[np.ndarray, "T"],
    group_T: Int[np.ndarray, "T"],
    branch_T: Int[np.ndarray, "T"],
    *,
    tile: tuple[int, int],
    window: int | None = None,
) -> Bool[np.ndarray, "rows columns"]:
    """Whether anything is visible in each tile, [T / height, T / width], by the rule of models/attention/layout.py, within a window if
    one is given."""
    height, width = tile
    queries, keys = (runs_of(position_T, group_T, branch_T, size=size) for size in tile)
    seen = np.zeros((len(group_T) // height, len(group_T) // width), bool)
    for number in np.unique(queries.group):  # tokens of different groups never see each other
        q, k = (np.flatnonzero(runs.group == number) for runs in (queries, keys))
        first_q, last_q, branch_q = (x[q][:, None] for x in (queries.first, queries.last, queries.branch))
        first_k, last_k, branch_k = (x[k][None, :] for x in (keys.first, keys.last, keys.branch))
        if number == 0:  # padding sees itself alone
            sees = (first_k <= last_q) & (first_q <= last_k)
        else:
            on_path = (branch_k == 0) | (branch_k == branch_q)
            sees = on_path & (first_k <= last_q) & (window is None or first_q - last_k < window)
        at_q, at_k = np.nonzero(sees)
        seen[queries.tile[q][at_q], keys.tile[k][at_k]] = True
    return seen
