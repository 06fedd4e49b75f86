"""Checkpoints in a bucket of Google Cloud Storage: before a local emulator of it, where gcsfs and gcp-storage-emulator are installed."""

import importlib.util
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from rapo_jax import buckets
from rapo_jax.checkpoint import Store
from rapo_jax.errors import UserError
from rapo_jax.fingerprints import fingerprint
from rapo_jax.peers import answers
from tests import tiny
from tests.tiny import runs

EMULATOR = """
import sys, time
from gcp_storage_emulator.server import create_server
create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket").start()
time.sleep(1000)
"""
PACKAGES = ("gcsfs", "gcp_storage_emulator")
needs_emulator = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, PACKAGES)), reason=f"needs {' and '.join(PACKAGES)}"
)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """gs://bucket, for this process and those that it starts."""
    port, log = runs.free_port(), tmp_path_factory.mktemp("bucket") / "log"
    with log.open("w") as output, pytest.MonkeyPatch.context() as patch:
        command = [sys.executable, "-c", EMULATOR, str(port)]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            runs.wait_for(lambda: answers(f"127.0.0.1:{port}"), process, log=log)
            for name in ("TENSORSTORE_GCS_HTTP_URL", "STORAGE_EMULATOR_HOST"):  # of TensorStore, and of gcsfs
                patch.setenv(name, f"http://127.0.0.1:{port}")
            yield "gs://bucket"
        finally:
            process.kill()
            process.wait()


def state_of(number):
    return {"weights": jnp.arange(5000, dtype=jnp.float32) * number}


@needs_emulator
def test_a_bucket_keeps_steps_as_a_disk_does(bucket, tmp_path):
    """When this fails, a run whose checkpoints are in a bucket goes on from a step that was never whole, from wrong weights, or
    not at all; or never removes a step."""
    run_dir, place = tmp_path / "run", f"{bucket}/runs/steps"
    store = Store(run_dir, place)
    for step in (1, 2, 3, 4):
        store.save(step, state_of(step), identity={"name": "mine"}, config={})
    store.close()
    shutil.rmtree(run_dir)  # it vanished with its host
    (store.directory / "4" / "commit_success.txt").unlink()  # killed while it was written
    store = Store(run_dir, place)
    assert store.steps() == [3]
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_of(3))
    restored = store.restore(abstract)
    assert restored and restored.step == 3 and restored.identity == {"name": "mine"}
    assert fingerprint(restored.state) == fingerprint(state_of(3))
    store.save(4, state_of(4), identity={}, config={})
    store.wait()
    assert store.set_aside_after(3) == ["corrupt-4"] and store.steps() == [3]
    store.close()
    assert Store(run_dir, writes=False).steps() == [3]
    with pytest.raises(UserError, match=f"keeps its checkpoints in {place}, and train.checkpoints=null names another"):
        Store(run_dir)


@needs_emulator
@pytest.mark.slow
def test_a_run_whose_host_is_gone_goes_on_from_the_bucket(bucket, world, undisturbed, tmp_path, capsys):
    """When this fails, a preempted slice whose disk vanished with it starts over, or goes on as another run."""
    run_dir = tmp_path / "run"
    command = world.train(run_dir, f"train.checkpoints={bucket}/runs/mine")
    assert tiny.rapo_until(5, command) == runs.INTERRUPTED
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["rapo_jax.json"]
    shutil.rmtree(run_dir)
    assert tiny.rapo(*command) == runs.DONE
    assert "metrics.jsonl is not there, the checkpoint is of step 5" in capsys.readouterr().out
    assert runs.metrics_of(run_dir) == runs.metrics_of(undisturbed)[5:]
    arrays, others = runs.arrays_of(run_dir), runs.arrays_of(undisturbed)
    assert {name: array.tobytes() for name, array in arrays.items()} == {n: a.tobytes() for n, a in others.items()}
    assert tiny.rapo("export", run_dir, tmp_path / "out") == runs.DONE


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("gs://bucket", "must be gs://BUCKET/PATH, with a path in the bucket"),
        ("s3://bucket/runs", "must be a directory or gs://BUCKET/PATH"),
        ("gs://bucket/runs", r"needs the package gcsfs: pip install 'rapo_jax\[gcs\]'"),
    ],
)
def test_a_place_for_checkpoints_that_is_none_is_refused_and_nothing_is_written(place, says, tmp_path, monkeypatch):
    """When this fails, a misspelt bucket is a traceback after the model was loaded, or a directory named gs:."""
    monkeypatch.setattr(buckets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"train.checkpoints={place} {says}"):
        Store(tmp_path / "run", place)
    assert not (tmp_path / "run").exists()


def test_another_directory_keeps_the_checkpoints_of_a_run_and_the_run_says_where(tmp_path):
    """When this fails, checkpoints on a larger disk are not found by who reads the run."""
    store = Store(tmp_path / "run", str(tmp_path / "large"))
    store.save(2, state_of(2), identity={}, config={})
    store.close()
    assert (tmp_path / "large" / "2").is_dir()
    assert Store(tmp_path / "run", writes=False).steps() == [2]
