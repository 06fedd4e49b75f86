"""What the processes of a pod compare before they work."""

import pytest

from rapo_jax import distributed
from rapo_jax.distributed import require_same
from rapo_jax.errors import UserError


def others(monkeypatch, *values):
    """As if the other processes had these values."""
    monkeypatch.setattr(distributed, "each_process", lambda mine: [mine, *values])


def test_what_differs_between_processes_is_listed_with_both_values(monkeypatch):
    """When this fails, one host of a pod with another seed or an older package trains along, and nobody is told."""
    others(monkeypatch, {"seed": 3, "the version of rapo_jax": "0.0.9"}, {"seed": 0})
    with pytest.raises(UserError) as refusal:
        require_same({"seed": 0, "the version of rapo_jax": "0.1.0"})
    assert str(refusal.value) == (
        "the processes were not started with the same: seed is 0 in process 0 and 3 in process 1; the version of rapo_jax is "
        "0.1.0 in process 0 and 0.0.9 in process 1; the version of rapo_jax is 0.1.0 in process 0 and None in process 2. Start "
        "all of them with one command, the same files and the same versions. Nothing was written."
    )


def test_processes_that_agree_go_on(monkeypatch):
    """When this fails, no pod ever starts."""
    others(monkeypatch, {"seed": 0}, {"seed": 0})
    require_same({"seed": 0})
