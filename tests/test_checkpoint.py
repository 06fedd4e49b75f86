"""What a store of checkpoints does while it writes, and when the disk or another process fails. Damaged files: tests/invariants."""

import errno
import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from rapo_jax import space
from rapo_jax.checkpoint import Store
from rapo_jax.errors import UserError
from rapo_jax.fingerprints import Fingerprint, fingerprint

STATE = {"weights": jnp.arange(250, dtype=jnp.float32)}


@pytest.fixture
def store(tmp_path):
    """A store that has step 2."""
    store = Store(tmp_path)
    store.save(2, STATE, identity={}, config={})
    store.wait()
    yield store
    store.close()


def fail(error):
    raise error


def test_a_step_that_the_disk_has_no_room_for_is_named_with_its_size_and_what_is_safe(store, monkeypatch):
    """When this fails, a full disk is a thousand lines of TensorStore, and what it wrote keeps the disk full."""
    full = ValueError("RESOURCE_EXHAUSTED: Failed to write [OS error 28: ENOSPC No space left on device]")
    pending = SimpleNamespace(result=lambda timeout: fail(full))
    monkeypatch.setattr(store._checkpointer, "save_checkpointables_async", lambda *args, **more: pending)
    monkeypatch.setattr(space, "free_at", lambda path: 12)
    leftover = store.directory / "4.orbax-checkpoint-tmp"
    leftover.mkdir()
    store.save(4, STATE, identity={}, config={})
    with pytest.raises(UserError) as refusal:
        store.wait()
    assert str(refusal.value) == (
        f"no space left for {store.directory / '4'}: it needs 1.0 kB, and 12 bytes of its disk are free. Safe: step 2. Make "
        "space, and run the same command again."
    )
    assert not leftover.exists()
    with monkeypatch.context() as patch:
        patch.setattr(store._checkpointer, "close", lambda: fail(full))
        store.close()


def test_training_goes_on_while_a_step_is_written_and_what_is_written_is_the_step(store, monkeypatch):
    """When this fails, every save stops the loop until its fingerprints are computed and the disk has the arrays, or a checkpoint
    holds what the next step made of them in place."""
    state = {"weights": jnp.arange(250, dtype=jnp.float32) * 3}
    saved = fingerprint(state)
    may_write, collect = threading.Event(), Fingerprint.collect
    monkeypatch.setattr(Fingerprint, "collect", lambda self: may_write.wait(60) and collect(self))
    store.save(4, state, identity={}, config={})
    state = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(state)
    store.check()
    assert float(state["weights"][1]) == 4 and not (store.directory / "4").exists()
    may_write.set()
    store.wait()
    restored = store.restore(abstract())
    assert restored and restored.step == 4 and fingerprint(restored.state) == saved


def test_a_write_that_fails_in_the_background_is_told_once_at_the_next_step(store, monkeypatch):
    """When this fails, a run whose disk is full trains on to the next save, and hours of work are lost; or it ends with the
    same error again, from the block that closes the store, and with orbax's own."""
    with monkeypatch.context() as patch:
        patch.setattr(Fingerprint, "collect", lambda self: fail(OSError(errno.ENOSPC, "No space left on device")))
        store.save(4, STATE, identity={}, config={})
        with pytest.raises(UserError, match=r"no space left for .*/4: .* Safe: step 2\. Make space"):
            for _ in range(600):
                store.check()
                time.sleep(0.05)
    store.check()
    store.close()
    assert store.steps() == [2]


def test_a_run_that_has_no_room_for_its_next_step_is_refused_before_it_trains(store, monkeypatch):
    """When this fails, the first hours of a run are lost to a disk that was too small from the beginning."""
    store.require_space(SimpleNamespace(parameters=STATE))
    monkeypatch.setattr(space, "free_at", lambda path: 12)
    with pytest.raises(
        UserError, match=r"no space left for .*the next step: it needs .*, and 12 bytes of its disk are free"
    ):
        store.require_space(SimpleNamespace(parameters=STATE))


def test_memory_that_ran_out_or_a_lost_process_is_not_a_damaged_checkpoint(store, monkeypatch):
    """When this fails, a sound checkpoint is set aside as damaged, and the steps since the one before it are lost, because
    another host died while it was read."""
    lost = jax.errors.JaxRuntimeError("UNAVAILABLE: Gloo AllGather failed: Connection reset by peer")
    monkeypatch.setattr(store, "_load", lambda *args: fail(lost))
    with pytest.raises(jax.errors.JaxRuntimeError):
        store.restore({"weights": jax.ShapeDtypeStruct((250,), jnp.float32)})
    assert store.steps() == [2]


def abstract():
    return {
        "weights": jax.ShapeDtypeStruct(
            (250,), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
        )
    }


def test_who_reads_a_run_that_goes_on_gets_the_newest_step_of_then(store, tmp_path, monkeypatch):
    """When this fails, a run that trains on well is called damaged, because the steps that it had when it was opened are
    gone, the last of them while it was read."""
    reader = Store(tmp_path, writes=False)
    assert reader.steps() == [2]

    def goes_on(*steps):
        for step in steps:
            store.save(step, STATE, identity={}, config={})
            store.wait()

    goes_on(4, 6)
    load, gone = reader._load, []

    def gone_while_read(step, *more):
        if not gone:
            gone.append(step)
            goes_on(8, 10)
        return load(step, *more)

    monkeypatch.setattr(reader, "_load", gone_while_read)
    restored = reader.restore(abstract())
    assert gone == [6] and not (tmp_path / "checkpoints" / "6").exists() and restored and restored.step == 10
    with pytest.raises(UserError, match=r"has no step 2; it has: "):
        reader.restore(abstract(), step=2)
    reader.close()
