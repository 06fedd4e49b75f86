"""Records of any number of responses -> records of as many as the objective compares; the chosen one comes first.

Chosen is the response with the highest reward, the first of several. Where the source itself ranked its responses, as
(chosen, rejected) are, its order stands.
"""

import statistics
from collections.abc import Sequence
from dataclasses import replace

from rapo_jax.config.tree import Pairs
from rapo_jax.data.draws import record_share
from rapo_jax.data.need import Want
from rapo_jax.errors import UserError
from rapo_jax.messages import Record


def reduce_record(record: Record, *, want: Want, pairs: Pairs, seed: int) -> list[Record]:
    """The records that one record gives; none where it has no response that is good enough.

    want "one": its best response, or with pairs=each every response by itself. "pair", "labelled": pairs of its best
    with a random other (by a hash of the texts), with its worst, or with every worse one; a response with a label stays
    alone. "all": itself, best first.
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
    """The rewards, or the mean of the attributes where there are none. Raises UserError for a row that has neither."""
    if record.rewards is not None:
        return record.rewards
    if record.attributes is not None:
        return [statistics.fmean(each.values()) for each in record.attributes]
    raise UserError(
        f"row {record.row} has {len(record.responses)} responses and no rewards to choose among them; name the column "
        "of their scores with data.columns.rewards=..., or give a file of them with data.rewards=FILE.jsonl."
    )


def best(record: Record) -> int:
    """The index of the first maximum; without rewards the first response, which needs no choice when it is the only one."""
    if len(record.responses) == 1:
        return 0
    found = scores(record)
    return max(range(len(found)), key=lambda index: found[index])


def with_responses(record: Record, order: Sequence[int]) -> Record:
    """The record with only these responses, in this order, which is now one of preference."""
    picked = {
        name: None if values is None else tuple(values[index] for index in order)
        for name in ("responses", "rewards", "attributes", "labels")
        for values in [getattr(record, name)]
    }
    return replace(record, **picked, ranked=True)


def fine_grained_agree(record: Record) -> bool:
    """Whether the chosen response's mean of attributes is at least the rejected one's; true where there are none."""
    if record.attributes is None or len(record.responses) < 2:
        return True
    chosen, rejected = (statistics.fmean(each.values()) for each in record.attributes[:2])
    return chosen >= rejected
