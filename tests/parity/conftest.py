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
