"""The mesh over devices that several TPU slices hold; the other properties of meshes are those of runs (tests/invariants)."""

from dataclasses import dataclass

import numpy as np
import pytest

from rapo_jax.errors import UserError
from rapo_jax.parallel import make_mesh, number_of_slices


@dataclass(frozen=True)
class Chip:
    """A device as JAX describes one of a TPU slice."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0

    @property
    def process_index(self) -> int:
        return self.slice_index


TWO_SLICES = tuple(
    Chip(4 * number + 2 * y + x, number, (x, y, 0)) for number in range(2) for x in range(2) for y in range(2)
)


def test_each_slice_is_a_part_of_the_data_axis():
    """When this fails, weights are gathered over the network between slices in every layer."""
    mesh = make_mesh(data=4, fsdp=-1, devices=TWO_SLICES)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "context": 1, "tensor": 1}
    where = np.vectorize(lambda chip: chip.slice_index)(mesh.devices).reshape(4, 2)
    assert where.tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]
    assert set(mesh.devices.flat) == set(TWO_SLICES)


def test_a_mesh_that_would_split_weights_over_slices_is_refused():
    with pytest.raises(UserError) as refusal:
        make_mesh(devices=TWO_SLICES)
    assert str(refusal.value) == (
        "mesh.data=1, mesh.fsdp=-1, mesh.tensor=1 cannot use 2 slices: each holds replicas, because the network between "
        "them is slow; set mesh.data=2, or another multiple of it."
    )


def test_hosts_of_gpus_are_no_slices():
    """JAX numbers them alike, and jax.make_mesh refuses them since 0.10.1. When this fails, two hosts with GPUs cannot train."""
    gpus = [Chip(n, n // 2, (0, 0, 0), platform="gpu", device_kind="NVIDIA H100 80GB HBM3") for n in range(4)]
    assert number_of_slices(gpus) == 1
    assert dict(make_mesh(devices=gpus).shape)["fsdp"] == 4
