"""A run's checkpoint as a Hugging Face directory that answers at the highest goal, without its user knowing of goals.

The goal's sentence becomes part of the exported chat template. What was written is read back and its logits compared
before anything is called done; the directory appears whole or not at all.
"""

import copy
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from rapo_jax import __version__
from rapo_jax.borders import write_text
from rapo_jax.chat.goal_prompt import SIDECAR, GoalPrompt
from rapo_jax.chat.templates import bake_goal, padding_token
from rapo_jax.checkpoint import Restored
from rapo_jax.config.files import to_yaml
from rapo_jax.config.tree import Config
from rapo_jax.errors import UserError
from rapo_jax.models.decoder import abstract_decoder, plain_layout
from rapo_jax.models.directory import read_generation_config
from rapo_jax.models.files import load_parameters, save_parameters
from rapo_jax.models.lora import merged, with_adapters
from rapo_jax.models.peft import load_adapters, save_adapters
from rapo_jax.models.spec import Spec, read_config, score_config
from rapo_jax.relabel import format_score
from rapo_jax.runs.identity import model_identity
from rapo_jax.runs.setup import Setup, model_weights


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
            f"{config.run_dir} started from random weights (model.random_init), which no file holds for adapters to stand "
            f"on; leave out --adapter to export the whole model."
        )


def write_run(setup: Setup, restored: Restored, out_dir: Path, *, goal_prompt: GoalPrompt, adapter: bool) -> float:
    """Writes what a checkpoint trained: a model, or with `adapter` what a LoRA run adds to its model.

    Returns the largest difference of logits between what was trained and what was written.
    """
    trained, identity = restored.state["parameters"], restored.identity
    if adapter:
        base = frozen_weights(setup, identity, dtype=jnp.dtype("float32"))
        return write_adapter(setup, trained, out_dir, base=base, step=restored.step, goal_prompt=goal_prompt)
    parameters = trained if setup.spec.lora is None else merged_weights(setup, trained, identity)
    return write_model(setup, parameters, out_dir, step=restored.step, goal_prompt=goal_prompt)


def write_model(setup: Setup, parameters: dict, out_dir: Path, *, step: int, goal_prompt: GoalPrompt) -> float:
    """Writes weights (in the dtype of the starting model), config, generation config, tokenizer and model card.

    Returns the largest difference of logits between `parameters` in that dtype and the directory read back.
    """
    source = read_config(setup.model_dir)
    dtype = jnp.dtype(source.get("dtype") or source.get("torch_dtype") or "float32")
    temporary = out_dir.with_name(out_dir.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_parameters(parameters, setup.spec, temporary, dtype=dtype)
    if jax.process_index() == 0:
        stops = list(setup.stop_tokens)
        stop = {"eos_token_id": stops[0] if len(stops) == 1 else stops}
        config = source | {"dtype": dtype.name} | stop
        if setup.spec.scored:
            config = score_config(config, pad_token=padding_token(setup.tokenizer, stops))
        write_json(temporary / "config.json", config)
        write_json(temporary / "generation_config.json", read_generation_config(setup.model_dir) | stop)
        write_companions(setup, temporary, step=step, goal_prompt=goal_prompt, card=model_card)
    difference = verify(parameters, setup.spec, temporary, dtype=dtype, mesh=setup.mesh)
    appear(temporary, out_dir)
    return difference


def write_adapter(
    setup: Setup, trained: dict, out_dir: Path, *, base: dict, step: int, goal_prompt: GoalPrompt
) -> float:
    """Writes adapters for peft (float32), tokenizer and model card; `base` are the frozen weights.

    Returns the largest difference of logits between the adapters on these weights and the directory read back.
    """
    temporary = out_dir.with_name(out_dir.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_adapters(trained, setup.spec, temporary, base=setup.config.model.path)
    if jax.process_index() == 0:
        write_companions(setup, temporary, step=step, goal_prompt=goal_prompt, card=adapter_card)
    written = load_adapters(temporary, setup.spec, mesh=setup.mesh)
    both = (with_adapters(base, adapters) for adapters in (trained, written))
    difference = largest_difference(*both, spec=setup.spec, directory=temporary)
    appear(temporary, out_dir)
    return difference


def merged_weights(setup: Setup, trained: dict, identity: dict) -> dict:
    """Float32 parameters of a LoRA run's model without adapters: the starting weights, and what the adapters add."""
    base = frozen_weights(setup, identity, dtype=jnp.dtype("float32"))
    return jax.jit(lambda base, trained: merged(base, trained, setup.spec), donate_argnums=0)(base, trained)


def frozen_weights(setup: Setup, identity: dict, *, dtype: jnp.dtype) -> dict:
    """The weights under the adapters of a checkpoint with this identity.

    Raises UserError where model.path holds others by now.
    """
    weights = model_weights(setup, dtype=jnp.dtype(setup.config.model.dtype))
    if model_identity(setup, weights) != identity["model"]:
        raise UserError(
            f"model.path={setup.config.model.path} holds other weights than those that the adapters of {setup.run_dir} "
            f"were trained on; put back the model that the run started from. Nothing was written."
        )
    return weights if dtype == setup.config.model.dtype else model_weights(setup, dtype=dtype)


def appear(temporary: Path, out_dir: Path) -> None:
    if jax.process_index() == 0:
        if out_dir.exists():
            out_dir.rmdir()
        os.replace(temporary, out_dir)


def write_companions(setup: Setup, directory: Path, *, step: int, goal_prompt: GoalPrompt, card) -> None:
    """What stands beside the weights, whole or adapters: tokenizer, goal and model card."""
    write_tokenizer(setup, directory, goal_prompt)
    write_json(directory / SIDECAR, {"rapo_jax": __version__, "step": step, "goal_prompt": vars(goal_prompt)})
    write_text(directory / "README.md", card(setup.config, step, goal_prompt))


def write_tokenizer(setup: Setup, directory: Path, goal_prompt: GoalPrompt) -> None:
    """The tokenizer with the goal in its chat template. `setup.tokenizer` itself is left as it was."""
    tokenizer = copy.deepcopy(setup.tokenizer)
    if goal_prompt.baked is not None:
        sentence = goal_prompt.sentence(goal_prompt.baked)
        tokenizer.chat_template = bake_goal(goal_prompt.chat_template, sentence, goal_prompt.placement)
    tokenizer.save_pretrained(directory)


def write_json(path: Path, content: dict) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def verify(parameters: dict, spec: Spec, directory: Path, *, dtype: jnp.dtype, mesh: Mesh) -> float:
    """The largest difference of logits on random tokens; raises if what was written computes something else."""
    written = load_parameters(directory, spec.base, mesh=mesh, dtype=dtype)
    return largest_difference(parameters, written, spec=spec.base, directory=directory, dtype=dtype)


def largest_difference(
    parameters: dict, written: dict, *, spec: Spec, directory: Path, dtype: jnp.dtype = jnp.float32
) -> float:
    """Of logits (scores) on random tokens, weights rounded to `dtype`. RuntimeError where it is more than rounding."""
    tokens_BT = jnp.asarray(np.random.default_rng(0).integers(0, spec.V, (1, 32)))
    graph, _ = abstract_decoder(spec)

    @jax.jit
    def outputs(parameters: dict):
        decoder = nnx.merge(graph, jax.tree.map(lambda x: x.astype(dtype).astype(jnp.float32), parameters))
        hidden_BTD, _ = decoder(tokens_BT, plain_layout(tokens_BT))
        return decoder.score(hidden_BTD) if spec.scored else decoder.logits(hidden_BTD)

    difference = float(jnp.abs(outputs(parameters) - outputs(written)).max())
    if not difference <= 1e-5:
        raise RuntimeError(f"{directory} was written but computes other logits (difference {difference:.3g})")
    return difference


def model_card(config: Config, step: int, goal_prompt: GoalPrompt) -> str:
    base = config.model.path if not Path(config.model.path).is_dir() else Path(config.model.path).name
    method = "reward-augmented " if config.relabel.goals else ""
    if goal_prompt.baked is None:
        goals = "The chat template asks for no goal."
    else:
        goals = (
            f"The chat template asks for goal {format_score(goal_prompt.baked)} by itself, in the "
            f"{goal_prompt.placement} turn:\n\n> {goal_prompt.sentence(goal_prompt.baked)}"
        )
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [rapo_jax, {config.objective.name}]
---

# {base}, {method}{config.objective.name}

Trained with rapo_jax {__version__} from {base}, {step} optimizer steps. {goals}

```python
from transformers import pipeline

chat = pipeline("text-generation", model="PATH_OF_THIS_DIRECTORY")
print(chat([{{"role": "user", "content": "Hello!"}}], max_new_tokens=200)[0]["generated_text"][-1]["content"])
```

## Configuration

```yaml
{without_directories(config)}```
"""


def adapter_card(config: Config, step: int, goal_prompt: GoalPrompt) -> str:
    """The card of adapters: that of the model, for peft."""
    card = model_card(config, step, goal_prompt)
    start, end = card.index("```python"), card.index("## Configuration")
    loading = """```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("PATH_OF_THIS_DIRECTORY")
```

"""
    return card[:start].replace("library_name: transformers", "library_name: peft") + loading + card[end:]


def without_directories(config: Config) -> str:
    """The resolved configuration; directories of the training machine are nobody's business."""
    return "".join(
        f"{key}: {Path(value).name}\n" if Path(value.strip("'\"")).is_absolute() else f"{line}\n"
        for line in to_yaml(config).splitlines()
        for key, _, value in [line.partition(": ")]
    )
