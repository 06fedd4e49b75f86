"""Fingerprints of arrays that are never in memory as a whole, from those of their parts."""

from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Shaped

from rapo_jax.fingerprints import sums_of

Fingerprints = dict[str, list[int]]

_sums_of_part = jax.jit(sums_of)


class Sums:
    """Fingerprints of arrays of which parts are seen, one after another. Where every element is seen once, they are those of
    the arrays."""

    def __init__(self) -> None:
        self.found: Fingerprints = {}

    def add(self, name: str, index: Sequence[slice], part: Shaped[np.ndarray, "..."]) -> None:
        start = [np.uint32(each.start) for each in index]
        self.found = together([self.found, {name: [int(v) for v in np.asarray(_sums_of_part(part, start))]}])


def together(parts: Iterable[Mapping[str, Sequence[int]]]) -> Fingerprints:
    """The fingerprints of arrays from those of their parts, in the order of `fingerprint`."""
    found: Fingerprints = {}
    for part in parts:
        for name, sums in part.items():
            found[name] = [(a + b) % 2**32 for a, b in zip(found.get(name, (0, 0)), sums, strict=True)]
    return dict(sorted(found.items()))
