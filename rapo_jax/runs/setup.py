"""A resolved configuration becomes mesh, model, tokenizer, data and starting weights.

Everything here reads and checks; nothing is written but tokens, for later starts (data.cache).
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from rapo_jax.batching import pipeline
from rapo_jax.batching.kept import Place
from rapo_jax.chat.dates import pinned_day
from rapo_jax.chat.goal_prompt import GoalPrompt
from rapo_jax.chat.options import options_of
from rapo_jax.config.files import load_config
from rapo_jax.config.tree import AUTO_CACHE, Config, Split
from rapo_jax.distributed import each_process
from rapo_jax.errors import UserError
from rapo_jax.models.directory import model_directory
from rapo_jax.models.files import load_parameters
from rapo_jax.models.lora import adapted_spec
from rapo_jax.models.spec import Spec, read_config, spec_to_train
from rapo_jax.opened import open_for_training
from rapo_jax.parallel import make_mesh
from rapo_jax.train.state import random_parameters

TOKENS = "tokens"  # in run_dir
KEPT_FROM = 2**24  # bytes of data files; fewer are tokenized in seconds


@dataclass(frozen=True)
class Setup:
    """What train and export need of a run. `spec` includes the run's LoRA adapters, if it trains any."""

    config: Config
    run_dir: Path
    model_dir: Path
    spec: Spec
    mesh: Mesh
    tokenizer: PreTrainedTokenizerBase
    goal_prompt: GoalPrompt
    stop_tokens: tuple[int, ...]


def set_up(config: Config) -> Setup:
    """Resolves mesh, model and tokenizer, the day that the chat template writes and its options. Raises UserError for the
    first that cannot be resolved."""
    mesh = make_mesh(**vars(config.mesh))
    model_dir = model_directory(config.model.path)
    spec = spec_of(config, model_dir)
    opened = open_for_training(model_dir, config)
    own = pinned_day(opened.goal_prompt.chat_template)
    # Of process 0: the clocks of two hosts may show two days.
    day = each_process((recorded_day(Path(config.run_dir)) or own) if own else None)[0]
    if day and config.data.date is None:
        config = replace(config, data=replace(config.data, date=day))
        opened = open_for_training(model_dir, config)
    if config.rows.split is None:
        split = each_process(begun_with(Path(config.run_dir)))[0]
        config = replace(config, rows=replace(config.rows, split=split))
    options = {**options_of(opened.goal_prompt.chat_template), **config.data.template_options}
    config = replace(config, data=replace(config.data, template_options=options))
    return Setup(
        config=config,
        run_dir=Path(config.run_dir),
        model_dir=model_dir,
        spec=spec,
        mesh=mesh,
        tokenizer=opened.tokenizer,
        goal_prompt=opened.goal_prompt,
        stop_tokens=opened.stop_tokens,
    )


def recorded_day(run_dir: Path) -> str | None:
    """The day that the chat template of an existing run writes."""
    return open_run_dir(run_dir).data.date if (run_dir / "config.yaml").is_file() else None


def begun_with(run_dir: Path) -> Split:
    """rows.split of an existing run, whose rows stay the same bit for bit: earlier versions split no group; auto for a new run."""
    if not (run_dir / "config.yaml").is_file():
        return "auto"
    return open_run_dir(run_dir).rows.split or "never"


def spec_of(config: Config, model_dir: Path) -> Spec:
    """The architecture that a run trains: the model's, with a score head for reward models and with LoRA adapters where
    the configuration asks for them."""
    scored, said = config.objective.is_reward_model, f"model.path={config.model.path}"
    return adapted_spec(spec_to_train(read_config(model_dir), scored=scored, path=said), **vars(config.lora))


def open_run_dir(run_dir: Path) -> Config:
    """The configuration of an existing run. Raises UserError where there is none."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run_dir} is not a run directory of rapo_jax (it has no config.yaml).")
    return load_config(path)


def place_of_tokens(config: Config) -> Place | None:
    """Where a run keeps the tokens of its data: in data.cache or, of so much data that it takes a while, in its directory."""
    if config.data.cache != AUTO_CACHE:
        return Place(Path(config.data.cache)) if config.data.cache else None
    return Place(Path(config.run_dir) / TOKENS, own=True, least=KEPT_FROM) if config.run_dir else None


def read_training_data(setup: Setup) -> pipeline.Dataset:
    """The tokenized training groups."""
    how = {"goal_prompt": setup.goal_prompt, "progress": jax.process_index() == 0}
    how["place"] = place_of_tokens(setup.config)
    return pipeline.load_training(setup.config, setup.tokenizer, **how)


def read_held_out_data(setup: Setup, training: pipeline.Dataset) -> dict[str, pipeline.Dataset]:
    """The evaluation sets by the prefix of their metrics, on the training data's scale of scores; {} without evaluation.

    "eval" is relabelled like the training data. With goals there is also "eval_plain": the same rows without goals.
    """
    how = {"goal_prompt": setup.goal_prompt, "progress": jax.process_index() == 0, "scales": training.scales}
    how["place"] = place_of_tokens(setup.config)
    load = functools.partial(pipeline.load_held_out, setup.config, setup.tokenizer, **how)
    named = {"eval": load(), "eval_plain": load(plain=True) if setup.config.relabel.goals else None}
    return {name: data for name, data in named.items() if data is not None}


def starting_parameters(setup: Setup) -> dict:
    """The model's weights at the start: float32 when they are trained, the compute dtype when frozen under adapters."""
    return model_weights(setup, dtype=jnp.dtype(setup.config.model.dtype if setup.spec.lora else "float32"))


def model_weights(setup: Setup, *, dtype: jnp.dtype) -> dict:
    """The weights that a run starts from, without adapters."""
    if setup.config.model.random_init:
        weights = random_parameters(setup.spec, setup.mesh, seed=setup.config.seed)
        return jax.tree.map(lambda x: x.astype(dtype), weights)
    return load_parameters(setup.model_dir, setup.spec, mesh=setup.mesh, dtype=dtype, seed=setup.config.seed)
