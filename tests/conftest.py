"""What every test runs under: eight CPU devices, no network, one cache of compiled programs, and checks of shapes.

Most of the suite's time is XLA compiling. All tests, workers and subprocesses of a session share one persistent
compilation cache, which starts empty and is deleted at the end (JAX_COMPILATION_CACHE_DIR names another that stays), and
the compiler optimizes little: tiny arrays are not worth it. JAX_DISABLE_MOST_OPTIMIZATIONS=0 gives code as users run it.

Silent promotion is left to JAX's defaults: optax promotes dtypes on purpose (`decay**count`) and the shape suffixes of
this package announce every broadcast. tests/invariants/test_steps.py holds our own mathematics to strict dtypes instead.
"""

import gc
import os
import shutil
import tempfile
from collections import Counter
from importlib.metadata import version

import pytest
from packaging.version import Version

EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"
# Compiles in a third of the time. XLA aborts on a flag that it does not know; these were seen up to jaxlib 0.11.2.
COMPILE_FAST = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
flags = [os.environ.get("XLA_FLAGS", ""), EIGHT_DEVICES]
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" and Version(version("jaxlib")) <= Version("0.11.2"):
    flags.append(COMPILE_FAST)
os.environ["XLA_FLAGS"] = " ".join(flags).strip()
OWN_CACHE = None if os.environ.get("JAX_COMPILATION_CACHE_DIR") else tempfile.mkdtemp(prefix="compiled-")
if OWN_CACHE:  # workers are started by the process that made it, and inherit its name
    os.environ["JAX_COMPILATION_CACHE_DIR"] = OWN_CACHE
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

from tests.shapes import check_shapes  # noqa: E402

check_shapes()

from tests.tiny.chat_templates import build_tokenizer, sentencepiece_like, tokenizers  # noqa: E402, F401 (fixtures)
from tests.tiny.runs import WITHOUT_TORCH  # noqa: E402
from tests.tiny.shared_runs import share_runs  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--every-family", action="store_true", help="whole steps and answers of all families")


@pytest.fixture(scope="session", autouse=True)
def shared_runs():
    """What runs of one process share; those of others find no torch."""
    with pytest.MonkeyPatch.context() as patch:
        share_runs(patch)
        patch.setenv("PYTHONPATH", str(WITHOUT_TORCH), prepend=os.pathsep)
        yield


def pytest_collection_finish():
    """Keeps the garbage collector, which took a tenth of the suite's time, off what was imported, and lets it run rarely."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_unconfigure():
    if OWN_CACHE:
        shutil.rmtree(OWN_CACHE, ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Files with the most slow tests first, so that what idle workers take over at the end is short."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
