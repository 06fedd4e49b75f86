"""What earlier runs of ours wrote: metrics.jsonl, columns of numbers, rapo.json, checkpoints."""

import dataclasses
import functools
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from rapo_jax.chat.goal_prompt import GoalPrompt, read_goal_prompt
from rapo_jax.checkpoint import Store
from rapo_jax.passes.column import Column, Mismatch
from rapo_jax.train.journal import cut_back, last_record
from tests.fuzz.hostile import altered, as_json, damaged
from tests.fuzz.place import Border, Place, lines_of

METRICS = [{"step": step, "loss": 0.5, "rewards/margins": 0.1} for step in (1, 2, 3)]


def read_metrics(place: Place, content: bytes) -> object:
    directory = place.write({"metrics.jsonl": content})
    cut_back(directory / "metrics.jsonl", 2)
    return last_record(directory)


METRIC_FILES = st.one_of(
    st.tuples(altered(METRICS), st.booleans()).map(lambda drawn: lines_of([*METRICS, drawn[0]]) + b"\n" * drawn[1]),
    damaged(lines_of(METRICS) + b"\n"),
)
IDENTITY = {"weights": {"embed": [1, 2]}, "tokens": "abc", "dtype": "float32"}


def read_column(place: Place, files: dict[str, bytes]) -> object:
    column = Column(place.write(files), "policy", shape=(4, 3), identity=IDENTITY)
    try:
        column.open()
    except Mismatch:  # what its callers explain
        return None
    column.write(np.arange(4), np.ones((4, 3), np.float32))
    column.finish()
    return column.is_complete


@functools.cache
def column_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as directory:
        column = Column(Path(directory), "policy", shape=(4, 3), identity=IDENTITY)
        column.open()
        column.write(np.arange(2), np.ones((2, 3), np.float32))
        return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


@st.composite
def columns(draw) -> dict[str, bytes]:
    files = dict(column_files())
    name = draw(st.sampled_from([*files, "policy.json", "policy.json"]))
    if name == "policy.json" and draw(st.booleans()):
        files[name] = as_json(draw(altered([{"identity": IDENTITY}, {"identity": IDENTITY, "sha256": "0" * 64}])))
    else:
        files[name] = draw(damaged(files[name]))
    return files


SIDECAR = {
    "rapo_jax": "0.1.0",
    "step": 3,
    "goal_prompt": dataclasses.asdict(GoalPrompt("paper", 10.0, "user", 10.0, "{{ messages[0]['content'] }}")),
}


def read_sidecar(place: Place, content: bytes) -> object:
    goal_prompt = read_goal_prompt(place.write({"rapo.json": content}))
    return goal_prompt and goal_prompt.sentence(goal_prompt.baked)


CHECKPOINT = {"parameters": {"w": np.arange(8, dtype=np.float32)}}


@functools.cache
def checkpoint_files() -> dict[str, bytes]:
    """A step of a store, by path."""
    with tempfile.TemporaryDirectory() as directory:
        store = Store(Path(directory))
        store.save(1, jax.tree.map(jnp.asarray, CHECKPOINT), identity={"model": "x"}, config={"seed": 0})
        store.close()
        return {
            str(path.relative_to(directory)): path.read_bytes() for path in Path(directory).rglob("*") if path.is_file()
        }


@st.composite
def checkpoints(draw) -> dict[str, bytes]:
    files = dict(checkpoint_files())
    records = [name for name in files if files[name].startswith(b"{")]
    name = draw(st.sampled_from([*records, *records, *files]))
    if name in records and draw(st.booleans()):
        files[name] = as_json(draw(altered([json.loads(files[name])])))
    else:
        files[name] = draw(damaged(files[name]))
    return files


def read_checkpoint(place: Place, files: dict[str, bytes]) -> object:
    store = Store(place.write(files), writes=False)
    try:
        return store.restore(jax.tree.map(jnp.asarray, CHECKPOINT))
    finally:
        store.close()


SIDECARS = st.one_of(altered([SIDECAR]).map(as_json), damaged(as_json(SIDECAR)))
RECORDS = {
    "metrics": Border(METRIC_FILES, read_metrics, 5),
    "cache": Border(columns(), read_column, 5),
    "rapo.json": Border(SIDECARS, read_sidecar, 5),
    "checkpoint": Border(checkpoints(), read_checkpoint, 3),
}
