"""Many inputs of one border, from hypothesis, each judged."""

import hypothesis
from hypothesis import HealthCheck, Phase, settings

from tests.fuzz.judging import Tally
from tests.fuzz.place import Border, Place


def fuzz(border: Border, place: Place, *, number: int, seed: int = 0) -> Tally:
    """The tally of `number` inputs; the same seed gives the same inputs."""
    tally = Tally()

    @hypothesis.seed(seed)
    @settings(
        max_examples=number,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(border.inputs)
    def examine(given: object) -> None:
        tally.judge(lambda each: border.read(place, each), given)

    examine()
    return tally
