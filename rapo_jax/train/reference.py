"""The frozen policy that the trained one is compared with: resident weights, or log-probabilities written down before.

Resident weights have the dtype of the computation and are sharded like the policy's. Under adapters (LoRA) they are
the base as well, the only copy of it, and resident whatever the objective. A `Column` is one file of log-probabilities,
[groups, branches], that is filled once and outlives runs: every epoch, restart and sweep reads it.
"""

import hashlib
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rapo_jax.config.tree import Config
from rapo_jax.errors import UserError
from rapo_jax.models.spec import Spec
from rapo_jax.train.state import parameter_shardings


def reference_is_resident(config: Config) -> bool:
    """Whether a step computes the reference's log-probabilities itself."""
    return config.objective.needs("reference") and not config.reference.cache


def weights_are_resident(config: Config) -> bool:
    """Whether a step is handed frozen weights: the reference's, or those under the adapters, which are the same."""
    return reference_is_resident(config) or config.lora.rank is not None


def frozen_copy(parameters: dict, config: Config, spec: Spec, mesh: Mesh) -> dict:
    """The weights in the dtype of the computation, as a copy: donating the originals leaves it alone.

    Under adapters nobody donates them, and they have that dtype already: they are their own copy.
    """
    dtype = jnp.dtype(config.model.dtype)
    if spec.lora is not None:
        return jax.tree.map(lambda x: x.astype(dtype), parameters)
    cast = jax.jit(
        lambda p: jax.tree.map(lambda x: jnp.copy(x).astype(dtype), p), out_shardings=parameter_shardings(spec, mesh)
    )
    return cast(parameters)


def resident_reference(parameters: dict, config: Config, spec: Spec, mesh: Mesh) -> dict:
    """The frozen starting weights for the step, or {} where it needs none."""
    return frozen_copy(parameters, config, spec, mesh) if weights_are_resident(config) else {}


class Column:
    """Numbers of a data set's prompts and responses in `directory`, float32 [groups, branches]; NaN where still unknown.

    NAME.npy holds the numbers, NAME.json what they belong to and, once complete, their checksum. Only process 0 reads and
    writes. A column that belongs to something else is refused by `open`, one that is damaged is started anew.

    For messages, `holds` says what the numbers are, `option` what chooses the directory, and `said` how the user knows it
    (default: as the option's value).
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        *,
        shape: tuple[int, int],
        identity: dict,
        holds: str = "log-probabilities",
        option: str = "reference.cache",
        said: str | None = None,
    ):
        self.holds, self.option, self.said = holds, option, said or f"{option}={directory}"
        self.numbers, self.record = directory / f"{name}.npy", directory / f"{name}.json"
        self.shape, self.identity = shape, identity

    def open(self, differences) -> None:
        """`differences(before, now)` lists in words what differs between the recorded identity and this one.

        Raises UserError with that list.
        """
        directory = self.record.parent
        if directory.exists() and not directory.is_dir():
            raise UserError(f"{self.said} is a file; it must be a directory.")
        if self.record.exists():
            changed = differences(self.read_record()["identity"], self.identity)
            if changed:
                raise UserError(
                    f"{self.said} holds {self.holds} of something else; changed: {'; '.join(changed)}. "
                    f"Choose another {self.option}, or remove this directory. Nothing was overwritten."
                )
        directory.mkdir(parents=True, exist_ok=True)
        if not self.record.exists() or self.is_damaged():
            start = np.lib.format.open_memmap(self.numbers, mode="w+", dtype=np.float32, shape=self.shape)
            start[:] = np.nan
            start.flush()
            self.write_record({"identity": self.identity})
        self.values = np.lib.format.open_memmap(self.numbers, mode="r+")

    def is_damaged(self) -> bool:
        try:
            values = np.load(self.numbers, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):
            return True
        checksum = self.read_record().get("sha256")
        return values.shape != self.shape or (checksum is not None and checksum != sha256(values))

    def write(self, members: np.ndarray, logps: np.ndarray) -> None:
        """Numbers of the groups `members`; on disk when this returns."""
        self.values[members] = logps
        self.values.flush()

    def finish(self) -> None:
        """Marks the column complete, with a checksum that `open` compares."""
        self.write_record({"identity": self.identity, "sha256": sha256(self.values)})

    def read_record(self) -> dict:
        try:
            return json.loads(self.record.read_text())
        except ValueError as error:
            raise UserError(
                f"{self.record} is not JSON ({error}); remove {self.record.parent} to start anew."
            ) from error

    def write_record(self, record: dict) -> None:
        temporary = self.record.with_suffix(".tmp")
        temporary.write_text(json.dumps(record, indent=2) + "\n")
        os.replace(temporary, self.record)


def sha256(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
