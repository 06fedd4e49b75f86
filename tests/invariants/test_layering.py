"""Imports between rooms point down only, and no module collects odds and ends."""

import ast
import sys
from pathlib import Path

import pytest

import rapo_jax

ROOT = Path(rapo_jax.__file__).parent

# Each room may import from the floors below its own, and, on its own floor, only what is named after it.
FLOORS = [
    ["errors", "interruption", "memory", "places", "terminal"],
    ["failures", "hangs"],
    ["drawing", "intervals", "peers", "space"],
    ["borders", "locks", "messages"],
    ["buckets", "relabel", "objectives", "logprobs", "batch", "matrices"],
    ["config"],
    ["distributed", "fingerprints", "parallel"],
    ["checkpoint_directory", "parts"],
    ["models", "saved", "servers"],
    ["accounting", "checkpoint", "data"],
    ["chat"],
    ["batching"],
    ["opened"],
    ["train"],
    ["passes"],
    ["generate"],
    ["runs"],
    ["export", "plan", "score"],
    ["evaluate"],
    ["rounds"],
    ["report"],
    ["quickstart", "arguments"],
    ["cli"],
    ["__main__"],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FORBIDDEN = [("train", room) for room in ("data", "chat", "batching", "opened")]
FORBIDDEN += [("evaluate", "train"), ("data", "models"), ("chat", "models"), ("batching", "models")]
FORBIDDEN += [("models", room) for room in ("objectives", "messages", "relabel", "config")]
SHAPELESS = {"utils", "util", "common", "helpers", "helper", "misc", "base", "manager", "managers"}


def modules():
    """(room, path, every module that the file imports), function bodies included."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts == ("__init__",):
            continue
        names = []
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path.name}: relative imports hide their target"
                names += [f"{node.module}.{alias.name}" for alias in node.names]
        yield parts[0], "/".join(parts), names


IMPORTS = [(room, where, name.split(".")) for room, where, names in modules() for name in names]


def room_of(name: list[str]) -> str | None:
    """The room that an import enters; `from rapo_jax import __version__` enters none."""
    return name[1] if name[0] == "rapo_jax" and len(name) > 1 and not name[1].startswith("__version") else None


def test_imports_point_down_only():
    """When this fails, two rooms depend on each other and can no longer be changed, tested or understood apart."""
    unknown = {room for room, _, _ in IMPORTS} - FLOOR.keys()
    assert not unknown, f"give {unknown} a floor"
    wrong = [
        f"{where} imports {'.'.join(name)}"
        for room, where, name in IMPORTS
        if (entered := room_of(name)) and entered != room
        if FLOOR[entered] >= FLOOR[room] or (room, entered) in FORBIDDEN
    ]
    assert not wrong, "\n".join(wrong)


def test_the_method_needs_nothing_but_the_standard_library():
    """When this fails, the one file that a reader of the paper opens needs more than Python to be understood."""
    tops = {name[0] for room, _, name in IMPORTS if room == "relabel"}
    assert tops <= set(sys.stdlib_module_names)


def test_the_command_line_is_read_with_the_standard_library_alone():
    """When this fails, `rapo --help` and every mistyped command wait for JAX to be loaded."""
    tops = {name[0] for room, _, name in IMPORTS if room == "arguments"}
    assert tops <= {*sys.stdlib_module_names, "rapo_jax"}
    assert not {room_of(name) for room, _, name in IMPORTS if room == "arguments"} - {None, "arguments"}


@pytest.mark.parametrize("banned", ["torch", "trl", "tensorflow", "accelerate", "peft"])
def test_nothing_needs_another_framework(banned):
    """When this fails, an installation without torch breaks, or grows by gigabytes."""
    assert not [where for _, where, name in IMPORTS if name[0] == banned]


def test_transformers_gives_tokenizers_only():
    """When this fails, a model's code comes from a library that needs torch to run it."""
    taken = {name[-1] for _, _, name in IMPORTS if name[0] == "transformers"}
    assert all("Token" in what or what == "utils" for what in taken), taken


def test_no_module_collects_odds_and_ends():
    """When this fails, a module such as `utils` attracts every function without a home."""
    assert not [where for _, where, _ in modules() if SHAPELESS & set(where.split("/"))]
