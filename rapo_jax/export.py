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
from rapo_jax.config import Config, to_yaml
from rapo_jax.data.chat import bake_goal, end_of_turn
from rapo_jax.data.goal_prompt import SIDECAR, GoalPrompt
from rapo_jax.errors import UserError
from rapo_jax.models.decoder import abstract_decoder, plain_layout
from rapo_jax.models.directory import eos_tokens, read_generation_config
from rapo_jax.models.hf import load_parameters, save_parameters, write_text
from rapo_jax.models.spec import Spec, read_config
from rapo_jax.relabel import format_score
from rapo_jax.run import Setup


def refuse_nonempty(out_dir: Path) -> None:
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise UserError(f"{out_dir} is not empty; nothing was written. Choose another OUT_DIR or empty it yourself.")


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
        write_tokenizer(setup, temporary, goal_prompt)
        stops = sorted({*eos_tokens(setup.model_dir, source), end_of_turn(setup.tokenizer)})
        stop = {"eos_token_id": stops[0] if len(stops) == 1 else stops}
        write_json(temporary / "config.json", source | {"dtype": dtype.name} | stop)
        write_json(temporary / "generation_config.json", read_generation_config(setup.model_dir) | stop)
        write_json(temporary / SIDECAR, {"rapo_jax": __version__, "step": step, "goal_prompt": vars(goal_prompt)})
        write_text(temporary / "README.md", model_card(setup.config, step, goal_prompt))
    difference = verify(parameters, setup.spec, temporary, dtype=dtype, mesh=setup.mesh)
    if jax.process_index() == 0:
        if out_dir.exists():
            out_dir.rmdir()
        os.replace(temporary, out_dir)
    return difference


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
    tokens_BT = jnp.asarray(np.random.default_rng(0).integers(0, spec.V, (1, 32)))
    graph, _ = abstract_decoder(spec)

    @jax.jit
    def logits(parameters: dict):
        decoder = nnx.merge(graph, jax.tree.map(lambda x: x.astype(dtype).astype(jnp.float32), parameters))
        return decoder.logits(decoder(tokens_BT, plain_layout(tokens_BT))[0])

    written = load_parameters(directory, spec, mesh=mesh, dtype=dtype)
    difference = float(jnp.abs(logits(parameters) - logits(written)).max())
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


def without_directories(config: Config) -> str:
    """The resolved configuration; directories of the training machine are nobody's business."""
    return "".join(
        f"{key}: {Path(value).name}\n" if Path(value.strip("'\"")).is_absolute() else f"{line}\n"
        for line in to_yaml(config).splitlines()
        for key, _, value in [line.partition(": ")]
    )
