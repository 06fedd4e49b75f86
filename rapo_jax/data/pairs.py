"""Records of any number of responses -> records with as many as the objective compares, the chosen one first.

The chosen response has the highest reward; the first one wins a tie. A source that ranked its responses itself, as
(chosen, rejected) are, keeps its order.
"""

import statistics
from collections.abc import Sequence
from dataclasses import replace

from rapo_jax.config.tree import Pairs
from rapo_jax.data.draws import record_share
from rapo_jax.data.row_needs import Want
from rapo_jax.errors import UserError, counted
from rapo_jax.messages import Record


def reduce_record(record: Record, *, want: Want, pairs: Pairs, seed: int) -> list[Record]:
    """Splits or reduces one record; with `want` "one", an undesirable single response gives none.

    `want` "one": the best response. "each", or pairs="each" with "one": every response by itself. "pair" and
    "labelled": the best with a random other ("best_random", by a hash of the texts), with the worst ("best_worst"), or
    with every other ("all"); a single labelled response stays as it is. "all" and "any": the record itself, best
    response first.
    """
    if want in ("one", "each"):
        alone = [with_responses(record, (index,)) for index in range(len(record.responses))]
        if want == "each" or pairs == "each":
            return alone
        return [] if record.labels == (False,) else alone[:1] if record.ranked else [alone[best(record)]]
    if len(record.responses) < 2 or (record.ranked and len(record.responses) == 2):
        return [record]
    order = list(range(len(record.responses)))
    if not record.ranked:
        order.sort(key=lambda index: -scores(record)[index])
    if want in ("all", "any"):
        return [with_responses(record, order)]
    chosen, *others = order
    if pairs == "best_worst":
        others = others[-1:]
    elif pairs in ("auto", "best_random", "each"):
        others = [sorted(others)[int(record_share(record, seed=seed, purpose="rejected") * len(others))]]
    return [with_responses(record, (chosen, other)) for other in others]


def scores(record: Record) -> Sequence[float]:
    """The rewards, or without them the mean of each response's attributes. Raises UserError for a row without either."""
    if record.rewards is not None:
        return record.rewards
    if record.attributes is not None:
        return [statistics.fmean(each.values()) for each in record.attributes]
    raise UserError(
        f"row {record.row} has {counted(len(record.responses), 'response')} and no rewards to choose among them; name the column "
        "of their scores with data.columns.rewards=..., or give a file of them with data.rewards=FILE.jsonl."
    )


def best(record: Record) -> int:
    """The index of the first response with the highest reward; 0 for a single response, rewarded or not."""
    if len(record.responses) == 1:
        return 0
    found = scores(record)
    return max(range(len(found)), key=lambda index: found[index])


def with_responses(record: Record, order: Sequence[int]) -> Record:
    """The record with only these responses, ranked in this order."""
    picked = {
        name: None if values is None else tuple(values[index] for index in order)
        for name in ("responses", "rewards", "attributes", "labels", "more")
        for values in [getattr(record, name)]
    }
    return replace(record, **picked, ranked=True)


def fine_grained_agree(record: Record) -> bool:
    """Whether the chosen response's mean attribute is at least the rejected one's; True without attributes."""
    if record.attributes is None or len(record.responses) < 2:
        return True
    chosen, rejected = (statistics.fmean(each.values()) for each in record.attributes[:2])
    return chosen >= rejected
