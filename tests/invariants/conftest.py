"""One tiny world, and one run in it that nothing disturbed, for all tests that start whole runs."""

import pytest

from tests import tiny
from tests.tiny import runs


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return runs.make_world(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def undisturbed(world, tmp_path_factory):
    """The run directory of a run from start to end, in this process, on eight devices."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    assert tiny.rapo(*world.train(run_dir)) == runs.DONE
    return run_dir
