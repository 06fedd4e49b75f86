"""What every test runs under: eight CPU devices and no network.

Silent promotion is left to JAX's defaults: optax promotes dtypes on purpose (`decay**count`) and the shape suffixes of
this package announce every broadcast. tests/invariants/test_steps.py holds our own mathematics to strict dtypes instead.
"""

import os
from collections import Counter

EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {EIGHT_DEVICES}".strip()
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from tests.tiny.chat_templates import build_tokenizer, sentencepiece_like, tokenizers  # noqa: E402, F401 (fixtures)


def pytest_collection_modifyitems(items):
    """Files with the most slow tests first: a worker takes whole files, and all would wait for a long one that is last."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
