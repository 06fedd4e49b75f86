"""`rapo export`: a checkpoint of a run becomes a Hugging Face directory. model.py writes its files."""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp

from rapo_jax.chat.goal_prompt import GoalPrompt
from rapo_jax.checkpoint import Saved
from rapo_jax.config.tree import Config
from rapo_jax.distributed import on_first
from rapo_jax.errors import UserError
from rapo_jax.export.model import write_adapter, write_model
from rapo_jax.export.origins import hub_name
from rapo_jax.export.push import push, require_login
from rapo_jax.models.directory import is_adapter
from rapo_jax.models.lora import MergedWeights
from rapo_jax.models.text_part import is_multimodal
from rapo_jax.parallel import make_mesh
from rapo_jax.peers import at
from rapo_jax.runs.setup import Setup
from rapo_jax.runs.trained import TrainedRun, TrainedWeights, frozen_parts, open_trained, require_base, set_up_here


@dataclass(frozen=True)
class ExportOptions:
    """Which checkpoint (None: the newest), whether only its LoRA adapters, and what the chat template asks for.

    `goal` None bakes in the highest goal, where one sentence can ask for it; bake=False bakes in none. `push_to_hub` names
    a repository of the hub to upload to, which `private` keeps from others; None uploads nothing.
    """

    step: int | None = None
    adapter: bool = False
    goal: float | None = None
    bake: bool = True
    push_to_hub: str | None = None
    private: bool = False


@dataclass(frozen=True)
class Exported:
    """What was written, and read back bit for bit: the optimizer step, how the model is asked for a goal, and the address
    that it was uploaded to, if any."""

    step: int
    goal_prompt: GoalPrompt
    address: str | None = None


def export_run(run_dir: Path, out_dir: Path, *, options: ExportOptions) -> Exported:
    """Writes a checkpoint of `run_dir` into `out_dir`, completely or not at all, and uploads it if that is asked for.

    Raises UserError for an `out_dir` that is not empty, a run without a checkpoint, adapters that do not exist or whose
    starting model has changed, and for an upload that cannot be begun; the last after the directory is complete where the
    hub itself refuses it.
    """
    refuse_options(options)
    refuse_nonempty(out_dir)
    run = open_trained(run_dir, step=options.step)
    if options.adapter:
        refuse_no_adapters(run.config)
    setup = set_up_here(run.config, make_mesh(devices=jax.local_devices()))
    if options.adapter:
        refuse_base(setup, pushed=options.push_to_hub is not None)
    goal_prompt = replace(setup.goal_prompt, baked=goal_to_bake(run.config, options))
    step = write_checkpoint(run, setup, out_dir, goal_prompt=goal_prompt, adapter=options.adapter)
    return Exported(step, goal_prompt, uploaded(out_dir, options))


def uploaded(out_dir: Path, options: ExportOptions) -> str | None:
    """The address that process 0 uploads the export to, if that is asked for. The others wait, however long it takes."""
    repo = options.push_to_hub
    if repo is None:
        return None

    def upload() -> str:
        at(f"the upload to {repo}", "elsewhere")
        address = push(out_dir, repo, private=options.private)
        at("the end of the upload")
        return address

    return on_first(upload)


def goal_to_bake(config: Config, options: ExportOptions) -> float | None:
    """The goal that the exported chat template asks for by itself."""
    if options.goal is None and options.bake and config.relabel.has_highest_goal:
        return config.relabel.goal_max
    return options.goal


def refuse_options(options: ExportOptions) -> None:
    """Raises UserError, on all processes, for an upload that could not be made by process 0."""
    repo = options.push_to_hub
    if repo is not None:
        on_first(lambda: require_login(repo))
    elif options.private:
        raise UserError("--private is about the repository of --push-to-hub REPO; add that, or leave out --private.")


def refuse_base(setup: Setup, *, pushed: bool) -> None:
    """Raises UserError for adapters over adapters and on a part of a model, and where they are uploaded, for those on a model that nobody has."""
    path = setup.config.model.path
    if is_adapter(setup.model_dir):
        raise UserError(
            f"the adapters were trained over those of {path}, and peft loads only one of them; leave out --adapter to export "
            "the model with both merged."
        )
    if is_multimodal(setup.model_dir):
        raise UserError(
            f"the adapters were trained on the text part of {path}, and peft would load them onto the whole model, whose layers "
            "have other names; leave out --adapter to export the merged language model."
        )
    if pushed and hub_name(path, setup.model_dir) is None:
        raise UserError(
            f"the adapters were trained on {path}, a directory of this machine, and nobody else could load them onto it; "
            "leave out --adapter to upload the merged model."
        )


def refuse_nonempty(out_dir: Path) -> None:
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise UserError(f"{out_dir} is not empty; nothing was written. Choose another OUT_DIR or empty it yourself.")


def refuse_no_adapters(config: Config) -> None:
    if config.lora.rank is None:
        raise UserError(
            f"{config.run_dir} trained all weights and has no adapters (lora.rank was not set); leave out --adapter."
        )
    if config.model.random_init:
        raise UserError(
            f"{config.run_dir} started from random weights (model.random_init), which no file holds, so its adapters "
            f"cannot be loaded onto them; leave out --adapter to export the merged model."
        )


def write_checkpoint(run: TrainedRun, setup: Setup, out_dir: Path, *, goal_prompt: GoalPrompt, adapter: bool) -> int:
    """Writes the trained model, LoRA merged into its weights, or with `adapter` the LoRA adapters alone. Returns the step.

    Weights are read and written in parts, by the processors of this machine; adapters are small.
    """
    if setup.spec.lora is None:

        def write(saved: Saved) -> None:
            weights = TrainedWeights(saved.arrays)
            write_model(setup, weights, out_dir, step=saved.step, goal_prompt=goal_prompt, saved=saved.arrays)

        return run.use(setup, write)
    restored = run.restore(setup)
    trained, more = restored.state["parameters"], {"step": restored.step, "goal_prompt": goal_prompt}
    require_base(setup, restored.identity)
    if adapter:
        write_adapter(setup, trained, out_dir, **more)
    else:
        base = frozen_parts(setup, dtype=jnp.dtype("float32"))
        write_model(setup, MergedWeights(base, trained, setup.spec), out_dir, **more)
    return restored.step
