"""One tiny world, and one run in it that nothing disturbed, for all tests that start whole runs."""

import jax
import pytest

from tests.invariants import runs


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Runs in it share their compilations: the second one of a kind starts in seconds instead of half a minute."""
    world = runs.make_world(tmp_path_factory.mktemp("runs"))
    settings = {
        "jax_compilation_cache_dir": str(world.cache),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield world
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def undisturbed(world, tmp_path_factory):
    """The run directory of a run from start to end, in this process, on eight devices."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    assert runs.rapo(*world.train(run_dir)) == runs.DONE
    return run_dir
