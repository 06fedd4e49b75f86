"""A model's weights, wherever they are, read in parts: in a directory (files.py), in a checkpoint, in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Shaped

from rapo_jax.models.parameters import Location, pick


class Weights(Protocol):
    """Parameters by path, of which any part can be read."""

    def read(self, path: Location, index: Sequence[slice]) -> Shaped[np.ndarray, "..."]:
        """Part `index` of the parameter at `path`, whose starts and stops are numbers."""
        ...


@dataclass(frozen=True)
class Held:
    """Weights in the memory of this process."""

    parameters: Mapping[str, Any]

    def read(self, path: Location, index: Sequence[slice]) -> Shaped[np.ndarray, "..."]:
        return np.asarray(pick(self.parameters, path))[tuple(index)]
