"""Torch beside JAX on the same few cores."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_torch_thread():
    """Matrices of 32 columns are not worth a thread pool, least of all one that spins while JAX computes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_collection_after_every_run(monkeypatch):
    """accelerate collects garbage and empties an accelerator's cache after every run: half a second of a large session."""
    monkeypatch.setattr("accelerate.utils.memory.clear_device_cache", lambda *_, **__: None)
