"""Writing a model, or LoRA adapters, as a directory that transformers, peft and `rapo generate` read.

The sentence that asks for the goal becomes part of the exported chat template, so that its users get the best answers
without knowing about goals. The weights are read back and compared bit for bit before the directory appears, and so is the text that the
template writes.
"""

import copy
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from rapo_jax import __version__
from rapo_jax.borders import whole_directory, write_json, write_text
from rapo_jax.chat.baking import baked_templates
from rapo_jax.chat.goal_prompt import SIDECAR, GoalPrompt
from rapo_jax.chat.templates import chat_format, padding_token
from rapo_jax.distributed import barrier, each_process, is_first
from rapo_jax.errors import UserError
from rapo_jax.export.card import CardKind, model_card
from rapo_jax.export.older_readers import model_config, save_tokenizer
from rapo_jax.export.origins import CARD, hub_name, origins
from rapo_jax.export.verify import require_same
from rapo_jax.export.verify_text import require_same_text
from rapo_jax.fingerprints import fingerprint
from rapo_jax.models.directory import read_generation_config, tokenizer_directory
from rapo_jax.models.files import FileWeights
from rapo_jax.models.parameters import parameter_letters, shape_of
from rapo_jax.models.peft import load_adapters, save_adapters
from rapo_jax.models.spec import Spec, read_config, score_config
from rapo_jax.models.weights import Weights
from rapo_jax.models.writing import Written, save_parameters, summed
from rapo_jax.peers import waiting
from rapo_jax.runs.setup import Setup
from rapo_jax.runs.trained import stored_dtype
from rapo_jax.saved import Corrupt, SavedArrays
from rapo_jax.space import require_space


def write_model(
    setup: Setup,
    weights: Weights,
    out_dir: Path,
    *,
    step: int,
    goal_prompt: GoalPrompt,
    saved: SavedArrays | None = None,
) -> None:
    """Writes weights (in the dtype of the starting model), config, generation config, tokenizer and model card, and reads the
    weights back: they are the same bit for bit, or RuntimeError is raised. `saved` are the arrays that `weights` are read from.

    Raises Corrupt where those are damaged, and UserError for weights that are not finite; then nothing is left.
    """
    dtype, spec = np.dtype(stored_dtype(setup)), setup.spec.base
    if is_first():
        size = sum(prod(shape_of(spec, letters)) for letters in parameter_letters(spec).values())
        require_space(out_dir, size * dtype.itemsize)
    with whole_directory(out_dir, writes=is_first()) as temporary:
        barrier("the directory exists")
        with waiting("writing the model", "long"):
            written = written_if_sound(weights, spec, temporary, dtype=dtype, saved=saved)
        if is_first():
            write_configs(setup, temporary, model_config(read_config(setup.model_dir), dtype=dtype.name))
            kind = "reward model" if setup.spec.scored else "model"
            write_companions(setup, temporary, step=step, goal_prompt=goal_prompt, kind=kind)
        barrier("the model is written")
        with waiting("reading the model back", "long"):
            found = summed(FileWeights(temporary, spec, dtype=dtype), spec, names=written.names, what="read back")
        require_same(found, written.sums.found, temporary)
        barrier("the model is read back")


def written_if_sound(
    weights: Weights, spec: Spec, directory: Path, *, dtype: np.dtype, saved: SavedArrays | None
) -> Written:
    """What this process wrote. Raises, on all processes, Corrupt for a damaged checkpoint, and otherwise UserError for weights
    that are not finite."""
    damage, written = None, Written()
    try:
        written = save_parameters(weights, spec, directory, dtype=dtype)
    except Corrupt as error:
        damage = error
    if saved is not None:
        saved.require_sound(damage)
    refused = [each for each in each_process(written.refused) if each]
    if refused:
        raise UserError(refused[0])
    return written


def write_adapter(setup: Setup, trained: dict[str, Any], out_dir: Path, *, step: int, goal_prompt: GoalPrompt) -> None:
    """Writes LoRA adapters in peft's format (float32), tokenizer and model card, and reads the adapters back: they are the same
    bit for bit, or RuntimeError is raised."""
    with whole_directory(out_dir, writes=is_first()) as temporary:
        barrier("the directory exists")
        path = setup.config.model.path
        save_adapters(trained, setup.spec, temporary, base=hub_name(path, setup.model_dir) or path)
        if is_first():
            kind = "reward adapter" if setup.spec.scored else "adapter"
            write_companions(setup, temporary, step=step, goal_prompt=goal_prompt, kind=kind)
        barrier("the adapters are written")
        written = load_adapters(temporary, setup.spec, mesh=setup.mesh)
        require_same(fingerprint(written), fingerprint(trained), temporary)
        barrier("the adapters are read back")


def write_configs(setup: Setup, directory: Path, config: dict[str, Any]) -> None:
    """config.json and generation_config.json, which both declare every token that ends an answer."""
    stops = list(setup.stop_tokens)
    declared = {"eos_token_id": stops[0] if len(stops) == 1 else stops}
    config |= declared
    if setup.spec.scored:
        config = score_config(config, pad_token=padding_token(setup.tokenizer, stops))
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", read_generation_config(setup.model_dir) | declared)


def write_companions(setup: Setup, directory: Path, *, step: int, goal_prompt: GoalPrompt, kind: CardKind) -> None:
    """The files beside the weights: tokenizer, rapo.json and model card."""
    write_tokenizer(setup, directory, goal_prompt)
    asked = {name: value for name, value in vars(goal_prompt).items() if name != "named_templates" or value}
    # Without names that are not needed: versions that do not know them refuse them.
    write_json(directory / SIDECAR, {"rapo_jax": __version__, "step": step, "goal_prompt": asked})
    known = {"origins": origins(setup.config, setup.model_dir), "stops": setup.stop_tokens}
    ending = chat_format(setup.tokenizer, goal_prompt.placement).ending
    write_text(directory / CARD, model_card(setup.config, step, goal_prompt, kind=kind, ending=ending, **known))


def write_tokenizer(setup: Setup, directory: Path, goal_prompt: GoalPrompt) -> None:
    """The tokenizer with the goal baked into its chat template and, for a reward model, the padding token of its
    config.json. `setup.tokenizer` is left as it was."""
    tokenizer = copy.deepcopy(setup.tokenizer)
    if setup.spec.scored:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding_token(tokenizer, list(setup.stop_tokens)))
    tokenizer.chat_template = baked_templates(goal_prompt)
    save_tokenizer(tokenizer, directory, source=tokenizer_directory(setup.model_dir))
    require_same_text(directory, setup.tokenizer, goal_prompt)
