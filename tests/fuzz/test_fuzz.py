"""A slice of the fuzz harness: the same few hundred hostile inputs every time. `python -m tests.fuzz` runs as many as one likes."""

import gc

import pytest

from tests.fuzz.borders import BORDERS
from tests.fuzz.judging import PATIENCE
from tests.fuzz.place import make_place
from tests.fuzz.running import fuzz

INPUTS_A_SHARE = 3
MOST_GROWN = 400  # MiB by which a border's inputs may raise the peak memory


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("fuzz"))


# Orbax closes its event loop while other reads of a damaged step are still on their way.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", BORDERS)
def test_every_input_is_accepted_or_refused_with_one_message(name, place):
    """When this fails, something that a person, another program or an earlier run can give us ends in a traceback, hangs, or
    is answered with pages."""
    tally = fuzz(BORDERS[name], place, number=INPUTS_A_SHARE * BORDERS[name].share)
    gc.collect()  # what a library left half done is not for the next test to find
    report = "\n".join(f"{fault}: {tally.examples[fault]!r:.500}\n{tally.traces[fault]}" for fault in tally.faults)
    assert not tally.faults, report
    assert tally.accepted and tally.refused, (
        f"{tally.accepted} accepted, {tally.refused} refused: the inputs are of no use"
    )
    assert tally.slowest < PATIENCE and tally.grown < MOST_GROWN
