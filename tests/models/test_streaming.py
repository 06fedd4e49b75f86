"""Weights go from files to devices, and from checkpoints to files, in parts: no process reads what its devices do not hold, and
none has a whole tensor where a part will do. What comes of it is the same bit for bit."""

import json
from contextlib import suppress
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rapo_jax import parallel, saved
from rapo_jax.checkpoint import Store
from rapo_jax.errors import UserError
from rapo_jax.fingerprints import fingerprint, flat
from rapo_jax.models import files, writing
from rapo_jax.models.files import FileWeights, load_parameters
from rapo_jax.models.lora import MergedWeights, merged
from rapo_jax.models.weights import Held
from rapo_jax.models.writing import save_parameters
from rapo_jax.parallel import from_slices, sharding
from rapo_jax.parts import Sums
from rapo_jax.runs import trained
from rapo_jax.saved import Corrupt, SavedArrays, chunks_of
from tests import tiny
from tests.tiny.families import FAMILIES

F32 = np.dtype(np.float32)


def write_family(directory, name, dtype=F32):
    """A model directory of random weights in two files, written whole by the library."""
    spec = tiny.tiny_spec(name)
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(FAMILIES[name]))
    tensors = tiny.file_tensors(tiny.random_parameters(spec), spec, dtype=dtype)
    names = list(tensors)
    index = {}
    for number, half in enumerate((names[: len(names) // 2], names[len(names) // 2 :])):
        index |= dict.fromkeys(half, f"model-{number}.safetensors")
        save_file({n: tensors[n] for n in half}, directory / f"model-{number}.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return spec, tensors


@pytest.fixture
def asked(monkeypatch):
    """(tensor, elements) of every read from files of safetensors."""
    reads, read = [], files.Checkpoint.read

    def noted(self, name, slices):
        tensor = read(self, name, slices)
        reads.append((name, tensor.size))
        return tensor

    monkeypatch.setattr(files.Checkpoint, "read", noted)
    return reads


class OneProcess:
    """A sharding as the process sees it whose devices are the first few."""

    def __init__(self, whole, devices):
        self.whole, self.devices = whole, devices

    def addressable_devices_indices_map(self, shape):
        return {d: i for d, i in self.whole.devices_indices_map(shape).items() if d in self.devices}


def test_a_process_reads_what_its_devices_hold_and_nothing_else(tmp_path, asked, monkeypatch):
    """When this fails, every host of a pod reads the whole model, or has a stack of layers in memory twice. Two processes of
    four devices each, under fsdp=4 and tensor=2, read every element once between them, and replicated ones each."""
    spec, tensors = write_family(tmp_path / "model", "llama3")
    mesh = tiny.mesh_of(1, 4, 2)
    made = []
    monkeypatch.setattr(
        jax, "make_array_from_single_device_arrays", lambda shape, where, parts: made.append(parts) or parts[0]
    )
    held = {}
    for process in range(2):
        mine = jax.devices()[4 * process : 4 * process + 4]
        monkeypatch.setattr(parallel, "sharding", lambda *of, mine=mine: OneProcess(sharding(*of), mine))
        asked.clear()
        load_parameters(tmp_path / "model", spec, mesh=mesh)
        assert all(size < tensors[name].size for name, size in asked if tensors[name].ndim == 2), "a whole matrix"
        held[process] = sum(size for _, size in asked)
        assert {device for parts in made for part in parts for device in part.devices()} == set(mine)
        made.clear()
    replicated = sum(tensor.size for tensor in tensors.values() if tensor.ndim == 1)
    assert held[0] + held[1] == sum(tensor.size for tensor in tensors.values()) + replicated


def test_of_a_stack_of_layers_one_devices_slice_is_in_memory_at_a_time(monkeypatch):
    """When this fails, a host needs memory for what all of its devices hold, beside the devices."""
    alive, most = [], []

    class Part(np.ndarray):
        def __del__(self):
            alive.pop()

    def read(index):
        alive.append(None)
        most.append(len(alive))
        return np.ones([each.stop - each.start for each in index], np.float32).view(Part)

    monkeypatch.setattr(jax, "device_put", lambda x, device, put=jax.device_put: put(np.array(x), device))
    array = from_slices(tiny.mesh_of(2, 4, 1), "LDF", (3, 8, 5), read)
    assert most == [1] * 4  # the two replicas of a slice are read once
    assert array.shape == (3, 8, 5) and float(array.sum()) == 120


@pytest.mark.parametrize("family", ["llama3", "gemma2", "phi3-window"])
def test_what_is_written_in_parts_is_what_the_library_writes_whole(family, tmp_path, monkeypatch):
    """When this fails, an export is not the model that was trained, or not a file that others can read."""
    monkeypatch.setattr(writing, "PART", 999)  # bytes: a few rows
    dtype = np.dtype(jnp.bfloat16) if family == "gemma2" else F32
    spec = tiny.tiny_spec(family)
    parameters = tiny.random_parameters(spec)
    tensors = tiny.file_tensors(parameters, spec, dtype=dtype)
    written = save_parameters(Held(parameters), spec, tmp_path, dtype=dtype)
    save_file(tensors, tmp_path / "whole", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "whole").read_bytes()
    rounded = jax.tree.map(lambda x: jnp.asarray(x.astype(dtype)), parameters)
    assert written.sums.found == fingerprint(rounded) and written.names == list(tensors)
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES[family]))
    found = writing.summed(FileWeights(tmp_path, spec, dtype=dtype), spec, what="read back")
    assert found == fingerprint(rounded) and list(found) == list(fingerprint(rounded))


def test_a_pod_writes_each_of_its_files_once_and_one_index(tmp_path, monkeypatch):
    """When this fails, two hosts write into one file, or a file of the index is missing."""
    spec = tiny.tiny_spec("llama3")
    parameters = tiny.random_parameters(spec)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    names = []
    for process in (2, 0, 1):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        names += save_parameters(Held(parameters), spec, tmp_path, dtype=F32, shard_bytes=20_000).names
    weight_map = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert sorted(names) == sorted(weight_map) and len(set(weight_map.values())) > 3
    found = {name: tensor for path in tmp_path.glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert all((found[n] == tensor).all() for n, tensor in tiny.file_tensors(parameters, spec, dtype=F32).items())


def test_each_process_checks_the_base_that_it_is_going_to_merge(tmp_path, monkeypatch):
    """When this fails, one host of a pod merges adapters into another model than they were trained on, and writes its share of it."""
    spec, _ = write_family(tmp_path / "first", "llama3")
    write_family(tmp_path / "second", "llama3")
    path = tmp_path / "second" / "model-1.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(path).items()}, path)
    monkeypatch.setattr(writing, "SHARD_BYTES", 20_000)
    monkeypatch.setattr(trained, "stored_dtype", lambda setup: F32)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    config = SimpleNamespace(path="P", dtype="float32", random_init=False)

    def require(directories):
        def setup(directory):
            return SimpleNamespace(
                config=SimpleNamespace(model=config, seed=0), model_dir=directory, spec=spec, run_dir="R"
            )

        told = []
        for process, directory in enumerate(directories):
            monkeypatch.setattr(jax, "process_index", lambda process=process: process)
            monkeypatch.setattr(trained, "each_process", lambda value: told.append(value) or [value])
            with suppress(UserError):  # the sums of one process alone
                trained.require_base(setup(directory), identity)
        monkeypatch.setattr(trained, "each_process", lambda value: told)
        trained.require_base(setup(directories[0]), identity)

    whole = fingerprint(jax.tree.map(jnp.asarray, tiny.random_parameters(spec)))
    identity = {"model": trained.identity_of_weights(SimpleNamespace(spec=spec), whole)}
    require([tmp_path / "first", tmp_path / "first"])
    with pytest.raises(UserError, match=r"model\.path=P holds other weights"):
        require([tmp_path / "first", tmp_path / "second"])


def test_merged_weights_read_in_parts_are_those_merged_at_once(monkeypatch):
    """When this fails, a merged export is not the model that was evaluated."""
    monkeypatch.setattr(writing, "PART", 999)
    _, spec = tiny.with_lora(tiny.tiny_config(), "llama3")
    base, trained = tiny.random_parameters(spec.base), tiny.random_trained(spec, seed=1)
    at_once = merged(jax.tree.map(jnp.asarray, base), jax.tree.map(jnp.asarray, trained), spec)
    assert writing.summed(MergedWeights(Held(base), trained, spec), spec, what="merge") == fingerprint(at_once)
    assert fingerprint(at_once) != fingerprint(jax.tree.map(jnp.asarray, base))


# Checkpoints.


@pytest.fixture
def checkpoint(tmp_path):
    """The arrays of a step that was saved under fsdp=4, and its fingerprints."""
    spec = tiny.tiny_spec("llama3")
    weights = tiny.on_mesh(tiny.random_parameters(spec), spec, tiny.mesh_of(1, 4, 1))
    store = Store(tmp_path / "run")
    store.save(1, {"parameters": weights, "optimizer": {"mu": weights}}, identity={}, config={})
    store.close()
    directory = tmp_path / "run" / "checkpoints" / "1" / "state"
    return spec, weights, directory, fingerprint({"parameters": weights})


def read_all(arrays, weights):
    """Every layer of every array, in order: the same as the whole arrays."""
    for name, whole in flat({"parameters": weights}).items():
        for layer in range(whole.shape[0]):
            index = (slice(layer, layer + 1), *(slice(0, size) for size in whole.shape[1:]))
            assert arrays.read(name, index).tobytes() == np.asarray(whole[layer]).tobytes()


def test_a_layer_of_a_checkpoint_is_read_without_its_stack_and_without_moments(checkpoint):
    """When this fails, a host that exports a model needs memory for a whole stack of layers, or for the optimizer."""
    _, weights, directory, fingerprints = checkpoint
    arrays = SavedArrays(directory, fingerprints)
    read_all(arrays, weights)
    matrices = [name for name in fingerprints if weights_of(weights, name).ndim > 2]
    assert len(matrices) == 7 and all(arrays._open(name).chunk_layout.read_chunk.shape[0] == 1 for name in matrices)
    assert arrays._stores.keys() == fingerprints.keys()
    arrays.require_sound(None)


def weights_of(weights, name):
    return flat({"parameters": weights})[name]


def test_a_checkpoint_that_was_stored_in_whole_stacks_is_read_once(checkpoint, tmp_path, monkeypatch):
    """When this fails, older checkpoints cannot be exported, or are decompressed once for each layer."""
    _, weights, *_ = checkpoint
    monkeypatch.setattr("rapo_jax.saved.in_chunks", lambda context: None)
    store = Store(tmp_path / "older")
    store.save(1, {"parameters": weights}, identity={}, config={})
    store.close()
    fingerprints = fingerprint({"parameters": weights})
    arrays = SavedArrays(tmp_path / "older" / "checkpoints" / "1" / "state", fingerprints)
    read, array = [], saved.tensorstore.array
    monkeypatch.setattr(saved.tensorstore, "array", lambda into: read.append(into) or array(into))
    read_all(arrays, weights)
    arrays.require_sound(None)
    stored = {name: arrays._open(name).chunk_layout.read_chunk.shape for name in fingerprints}
    assert stored["parameters.blocks.q"] == (3, 8, 4, 8)  # a stack of layers, a quarter of D
    assert len(read) == sum(len(list(chunks_of(arrays._open(name).shape, chunk))) for name, chunk in stored.items())


def test_damage_is_noticed_when_all_is_read(checkpoint):
    """When this fails, rotten weights are exported without a word."""
    _, weights, directory, fingerprints = checkpoint
    other = {name: list(sums) for name, sums in fingerprints.items()}
    other["parameters.embed"][0] ^= 1
    arrays = SavedArrays(directory, other)
    read_all(arrays, weights)
    with pytest.raises(Corrupt, match=r"fingerprint differs in parameters\.embed"):
        arrays.require_sound(None)
    with pytest.raises(Corrupt, match="gone"):
        arrays.require_sound(Corrupt("gone"))
    for path in directory.rglob("d/*"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(Corrupt):
        read_all(SavedArrays(directory, fingerprints), weights)


def test_fingerprints_of_parts_are_those_of_the_whole():
    """When this fails, a sound checkpoint is called damaged."""
    x = np.random.default_rng(0).standard_normal((4, 6, 5)).astype(np.float32)
    sums = Sums()
    for rows in (slice(0, 1), slice(1, 4)):
        for columns in (slice(0, 2), slice(2, 6)):
            index = (rows, columns, slice(0, 5))
            sums.add("x", index, x[index])
    assert sums.found == fingerprint({"x": jnp.asarray(x)})
    changed = x.copy()
    changed.view(np.uint32)[2, 3, 4] ^= 1
    assert fingerprint({"x": jnp.asarray(changed)}) != sums.found
