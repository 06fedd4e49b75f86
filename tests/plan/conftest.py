"""What the tests of `rapo plan` plan."""

import json

import pytest

from tests.tiny import CONFIG, RUN

SHAPE = CONFIG | {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 160, "num_key_value_heads": 2}
PLAN = RUN + "rows: {length: 512}\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A config, and a model that is nothing but a config.json."""
    place = tmp_path_factory.mktemp("plan")
    (place / "config.yaml").write_text(PLAN)
    (place / "shape").mkdir()
    (place / "shape" / "config.json").write_text(json.dumps(SHAPE))
    return place
