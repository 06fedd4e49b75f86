"""Where hostile files are written, and the type of a border."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from jax.sharding import Mesh

from rapo_jax.chat.goal_prompt import GoalPrompt, configured_goal_prompt
from rapo_jax.config.tree import Config
from rapo_jax.opened import OpenedTokenizer, open_tokenizer
from rapo_jax.parallel import make_mesh
from tests.fuzz.hostile import as_json
from tests.tiny import write_model


@dataclass(frozen=True)
class Place:
    """A scratch directory, and a sound tiny model beside it."""

    scratch: Path
    model: Path
    opened: OpenedTokenizer
    goal_prompt: GoalPrompt
    mesh: Mesh

    def write(self, files: dict[str, bytes]) -> Path:
        """A scratch directory with these files and nothing else."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        for name, content in files.items():
            path = self.scratch / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return self.scratch


@dataclass(frozen=True)
class Border:
    """`share` is how many of all inputs go here, relative to the others."""

    inputs: st.SearchStrategy
    read: Callable[[Place, Any], object]
    share: int = 10


def make_place(directory: Path) -> Place:
    model = write_model(directory / "model")
    opened = open_tokenizer(model)
    goal_prompt = configured_goal_prompt(Config().relabel, placement="user", chat_template="")
    mesh = make_mesh(data=1, fsdp=-1, tensor=1)
    return Place(directory / "scratch", model, opened, goal_prompt, mesh)


def lines_of(rows: list[Any]) -> bytes:
    return b"\n".join(map(as_json, rows))
