"""Writing a model, or LoRA adapters, as a directory that transformers, peft and `rapo generate` read.

The sentence that asks for the goal becomes part of the exported chat template, so that its users get the best answers
without knowing about goals. The weights are read back and their logits compared before the directory appears, and so is
the text that the template writes.
"""

import copy
from pathlib import Path
from typing import Any

import jax

from rapo_jax import __version__
from rapo_jax.borders import whole_directory, write_json, write_text
from rapo_jax.chat.baking import baked_templates
from rapo_jax.chat.goal_prompt import SIDECAR, GoalPrompt
from rapo_jax.chat.templates import chat_format, padding_token
from rapo_jax.distributed import barrier, is_first
from rapo_jax.export.card import CardKind, model_card
from rapo_jax.export.older_readers import model_config, save_tokenizer
from rapo_jax.export.origins import CARD, hub_name, origins
from rapo_jax.export.verify import largest_difference, require_same
from rapo_jax.export.verify_text import require_same_text
from rapo_jax.models.directory import read_generation_config, tokenizer_directory
from rapo_jax.models.files import load_parameters, save_parameters
from rapo_jax.models.lora import with_adapters
from rapo_jax.models.peft import load_adapters, save_adapters
from rapo_jax.models.spec import read_config, score_config
from rapo_jax.runs.setup import Setup
from rapo_jax.runs.trained import stored_dtype
from rapo_jax.space import require_space


def write_model(
    setup: Setup, parameters: dict[str, Any], out_dir: Path, *, step: int, goal_prompt: GoalPrompt
) -> float:
    """Writes weights (in the dtype of the starting model), config, generation config, tokenizer and model card.

    Returns the largest difference of logits between `parameters` in that dtype and the directory read back.
    """
    dtype = stored_dtype(setup)
    if is_first():
        require_space(out_dir, sum(array.size for array in jax.tree.leaves(parameters)) * dtype.itemsize)
    with whole_directory(out_dir, writes=is_first()) as temporary:
        barrier("the directory exists")
        save_parameters(parameters, setup.spec, temporary, dtype=dtype)
        if is_first():
            write_configs(setup, temporary, model_config(read_config(setup.model_dir), dtype=dtype.name))
            kind = "reward model" if setup.spec.scored else "model"
            write_companions(setup, temporary, step=step, goal_prompt=goal_prompt, kind=kind)
        barrier("the model is written")
        written = load_parameters(temporary, setup.spec.base, mesh=setup.mesh, dtype=dtype)
        difference = largest_difference(parameters, written, spec=setup.spec.base, dtype=dtype)
        require_same(difference, temporary)
    return difference


def write_adapter(
    setup: Setup, trained: dict[str, Any], out_dir: Path, *, base: dict[str, Any], step: int, goal_prompt: GoalPrompt
) -> float:
    """Writes LoRA adapters in peft's format (float32), tokenizer and model card; `base` are the frozen weights.

    Returns the largest difference of logits between `trained` and the directory read back, both on `base`.
    """
    with whole_directory(out_dir, writes=is_first()) as temporary:
        barrier("the directory exists")
        path = setup.config.model.path
        save_adapters(trained, setup.spec, temporary, base=hub_name(path, setup.model_dir) or path)
        if is_first():
            kind = "reward adapter" if setup.spec.scored else "adapter"
            write_companions(setup, temporary, step=step, goal_prompt=goal_prompt, kind=kind)
        barrier("the adapters are written")
        written = load_adapters(temporary, setup.spec, mesh=setup.mesh)
        both = (with_adapters(base, adapters) for adapters in (trained, written))
        difference = largest_difference(*both, spec=setup.spec)
        require_same(difference, temporary)
    return difference


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
