"""The checkpoints of a run, read again: its weights as `rapo export` writes them, and the run as a model to be talked to.

A run may go on while it is read: only whole checkpoints are, and nothing is written.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Shaped

from rapo_jax.borders import path_of
from rapo_jax.chat.goal_prompt import GoalPrompt
from rapo_jax.checkpoint import Restored, Saved, Store
from rapo_jax.config.files import as_dict, from_dict
from rapo_jax.config.tree import Config, MeshSizes
from rapo_jax.distributed import each_process, require_same, say
from rapo_jax.errors import UserError
from rapo_jax.fingerprints import fingerprint
from rapo_jax.models.directory import is_run_directory, model_directory
from rapo_jax.models.files import FileWeights
from rapo_jax.models.lora import merged
from rapo_jax.models.parameters import Location
from rapo_jax.models.spec import Spec, read_config
from rapo_jax.models.weights import Held, Weights
from rapo_jax.models.writing import my_tensors, name_of, summed
from rapo_jax.opened import AS_RECORDED, ClosedModel, ModelDirectory, OpenedTokenizer, Rendering, open_tokenizer
from rapo_jax.parts import together
from rapo_jax.peers import waiting
from rapo_jax.runs.identity import LENGTH, identity_of_weights, model_identity
from rapo_jax.runs.settings import changes
from rapo_jax.runs.setup import Setup, model_weights, open_run_dir, set_up
from rapo_jax.saved import SavedArrays
from rapo_jax.train.state import abstract_trained


@dataclass(frozen=True)
class TrainedRun:
    """A run whose checkpoints can be read: `step`, or (None) the newest whole one, which `config` trained.

    `edited` is the configuration in run_dir.
    """

    run_dir: Path
    store: Store
    edited: Config
    config: Config
    step: int | None

    def restore(self, setup: Setup) -> Restored:
        """What the checkpoint trained: weights, or adapters. Raises UserError where there is none, or none is whole."""
        restored = self.store.restore(arrays_of(setup), step=self.step)
        if restored is None:
            raise self.untrained()
        self.require_agreed(restored.step)
        self.store.close()
        return restored

    def use(self, setup: Setup, use: Callable[[Saved], None]) -> int:
        """Calls `use` with the checkpoint, as `Store.use_newest` does, and returns its step. Raises UserError like `restore`."""

        def checked(saved: Saved) -> int:
            self.require_agreed(saved.step)
            use(saved)
            return saved.step

        step = self.store.use_newest(checked, arrays_of(setup), step=self.step)
        if step is None:
            raise self.untrained()
        self.store.close()
        return step

    def require_agreed(self, step: int) -> None:
        """Raises UserError for a step that another configuration trained, or that other processes do not have."""
        if self.step is None and trained_config(self.edited, self.store, step=step)[0] != self.config:
            raise UserError(
                f"{self.run_dir}: its newest checkpoint is damaged, and that of step {step} was trained with "
                f"another configuration; take that one with --step {step}."
            )
        require_same({f"the newest checkpoint of {self.run_dir}": step})

    def untrained(self) -> UserError:
        return UserError(f"{self.run_dir} has no checkpoint yet; train it first.")


def arrays_of(setup: Setup) -> dict[str, Any]:
    """The arrays of a checkpoint that a model is made of."""
    return {"parameters": abstract_trained(setup.spec, setup.mesh)}


def set_up_here(config: Config, mesh: Mesh) -> Setup:
    """What is needed of a run to read its checkpoints on `mesh`: of its own mesh nothing is left, it may be of another machine."""
    return replace(set_up(replace(config, mesh=MeshSizes())), mesh=mesh)


def open_trained(run_dir: Path, *, step: int | None = None) -> TrainedRun:
    """A run directory, opened to be read. Raises UserError where it holds no run, or not this step."""
    edited = replace(open_run_dir(run_dir), run_dir=str(run_dir))
    store = Store(run_dir, writes=False)
    config, changed = trained_config(edited, store, step=step)
    if changed:
        say(f"note: config.yaml is not what trained the checkpoint, which counts here: {changed}")
    return TrainedRun(run_dir, store, edited, config, step)


def trained_config(edited: Config, store: Store, *, step: int | None) -> tuple[Config, str]:
    """The configuration that trained a checkpoint, which config.yaml tells only until somebody edits it, and what was edited.

    Where model and run are now, and the mesh, come from config.yaml all the same.
    """
    recorded = store.recorded_config(step)
    if recorded is None:
        return edited, ""
    # A run that is being extended has a longer one in config.yaml before its first checkpoint.
    changed = [one for one in changes(recorded, as_dict(edited), given=None) if one.key not in LENGTH]
    if not changed:
        return edited, ""
    trained = from_dict(recorded)
    model = replace(trained.model, path=edited.model.path)
    return replace(trained, run_dir=edited.run_dir, mesh=edited.mesh, model=model), "; ".join(map(str, changed))


# Weights.


def whole_weights(setup: Setup, restored: Restored) -> dict[str, Any]:
    """The model's weights at a checkpoint, float32, LoRA merged into them."""
    trained = restored.state["parameters"]
    return trained if setup.spec.lora is None else merged_weights(setup, trained, restored.identity)


def merged_weights(setup: Setup, trained: dict[str, Any], identity: dict[str, Any]) -> dict[str, Any]:
    """Float32 weights with the LoRA adapters added to those that they were trained on."""
    base = frozen_weights(setup, identity, dtype=jnp.dtype("float32"))
    return jax.jit(lambda base, trained: merged(base, trained, setup.spec), donate_argnums=0)(base, trained)


def frozen_weights(setup: Setup, identity: dict[str, Any], *, dtype: jnp.dtype) -> dict[str, Any]:
    """The weights under the adapters of a checkpoint with this identity.

    Raises UserError where model.path now holds other weights.
    """
    weights = model_weights(setup, dtype=jnp.dtype(setup.config.model.dtype))
    if model_identity(setup, weights) != identity["model"]:
        raise other_base(setup)
    return weights if dtype == setup.config.model.dtype else model_weights(setup, dtype=dtype)


def frozen_parts(setup: Setup, *, dtype: jnp.dtype) -> Weights:
    """The weights that a run starts from, read in parts. Random ones are in memory."""
    if setup.config.model.random_init:
        return Held(model_weights(setup, dtype=dtype))
    return FileWeights(setup.model_dir, setup.spec, dtype=dtype, seed=setup.config.seed)


def require_base(setup: Setup, identity: dict[str, Any]) -> None:
    """Raises UserError, on all processes, like `frozen_weights`. Each process reads, in parts, what it is going to write."""
    found, complaint = {}, None
    try:
        weights = frozen_parts(setup, dtype=jnp.dtype(setup.config.model.dtype))
        names = my_tensors(setup.spec.base, stored_dtype(setup))
        with waiting("reading model.path", "long"):
            found = summed(weights, setup.spec.base, names=names, what="check model.path")
    except UserError as error:
        complaint = str(error)
    told = each_process({"complaint": complaint, "sums": found})
    if complaints := [each["complaint"] for each in told if each["complaint"] is not None]:
        raise UserError(complaints[0])
    if identity_of_weights(setup, together(each["sums"] for each in told)) != identity["model"]:
        raise other_base(setup)


def other_base(setup: Setup) -> UserError:
    return UserError(
        f"model.path={setup.config.model.path} holds other weights than those that the adapters of {setup.run_dir} "
        f"were trained on; put back the model that the run started from. Nothing was written."
    )


@dataclass(frozen=True)
class TrainedWeights:
    """The weights of a checkpoint that trained all of them, read in parts."""

    arrays: SavedArrays

    def read(self, path: Location, index: Sequence[slice]) -> Shaped[np.ndarray, "..."]:
        return self.arrays.read(f"parameters.{name_of(path)}", index)


def stored_dtype(setup: Setup) -> jnp.dtype:
    """The dtype of the starting model, in which an export is written."""
    source = read_config(setup.model_dir)
    return jnp.dtype(source.get("dtype") or source.get("torch_dtype") or "float32")


# A run as a model.


@dataclass
class RunModel:
    """The closed model of a run: what opening its export gives, weights, tokenizer and goal prompt, without writing one.

    `held` is the checkpoint from its identification until its weights are taken.
    """

    name: str
    run: TrainedRun
    mesh: Mesh
    held: Restored | None = None

    @functools.cached_property
    def setup(self) -> Setup:
        return set_up_here(self.run.config, self.mesh)

    @property
    def spec(self) -> Spec:
        return self.setup.spec.base

    def open_tokenizer(self, how: Rendering = AS_RECORDED) -> OpenedTokenizer:
        setup = self.setup
        opened = open_tokenizer(setup.model_dir, how, trained_with=self.own_goal_prompt())
        stops = tuple(sorted({*opened.stop_tokens, *setup.stop_tokens}))
        return replace(opened, directory=self.run.run_dir, stop_tokens=stops)

    def own_goal_prompt(self) -> GoalPrompt:
        relabel = self.setup.config.relabel
        return replace(self.setup.goal_prompt, baked=relabel.goal_max if relabel.has_highest_goal else None)

    @functools.cached_property
    def step_and_digest(self) -> tuple[int, str]:
        """The step of the checkpoint, of which a line tells, and the beginning of a SHA-256 of what it trained."""
        restored = self.held = self.run.restore(self.setup)
        which = "its newest checkpoint" if self.run.step is None else "the one of --step"
        adapters = ", adapters merged" if self.setup.spec.lora else ""
        say(f"{self.name}: step {restored.step} of the run, {which}{adapters}")
        what = [fingerprint(restored.state), restored.identity["model"]]
        return restored.step, hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]

    def identity(self) -> dict[str, str | int]:
        step, digest = self.step_and_digest
        return {"MODEL_DIR": digest, "--step": step}

    def parameters(self, dtype: jnp.dtype) -> dict[str, Any]:
        """The weights in `dtype`, rounded on the way to that of an export, whose numbers these are."""
        step, _ = self.step_and_digest
        restored, self.held = self.held or replace(self.run, step=step).restore(self.setup), None
        stored = stored_dtype(self.setup)
        weights = whole_weights(self.setup, restored)
        return jax.jit(lambda tree: jax.tree.map(lambda x: x.astype(stored).astype(dtype), tree))(weights)


def find_model(
    path: str, *, mesh: Callable[[], Mesh], option: str = "MODEL_DIR", step: int | None = None
) -> ClosedModel:
    """The model of a directory or hub id, or of a run directory's checkpoint: `step`, or else the newest whole one.

    `option` is what the user calls `path`. Raises UserError for what is none of these, and for a step of no run.
    """
    directory = path_of(path, said=f"{option}={path}")
    if path and is_run_directory(directory):
        return RunModel(path, open_trained(directory, step=step), mesh())
    if step is not None:
        raise UserError(f"--step={step} is of run directories, and {option}={path} is none; leave it out.")
    return ModelDirectory(path, model_directory(path, option=option), mesh())
