"""The model card (README.md) of an export: what it is, how to ask it, and the configuration that trained it."""

from pathlib import Path
from typing import Literal

from rapo_jax import __version__
from rapo_jax.chat.goal_prompt import GoalPrompt
from rapo_jax.config.files import to_yaml
from rapo_jax.config.tree import Config
from rapo_jax.relabel import format_score

CardKind = Literal["model", "adapter", "reward model", "reward adapter"]

CHAT = """\
from transformers import pipeline

chat = pipeline("text-generation", model="PATH_OF_THIS_DIRECTORY")
print(chat([{"role": "user", "content": "Hello!"}], max_new_tokens=200)[0]["generated_text"][-1]["content"])"""
LOADED_BY = {
    "adapter": ("peft", "AutoPeftModelForCausalLM"),
    "reward model": ("transformers", "AutoModelForSequenceClassification"),
    "reward adapter": ("peft", "AutoPeftModelForSequenceClassification"),
}


def model_card(config: Config, step: int, goal_prompt: GoalPrompt, *, kind: CardKind) -> str:
    """The card's text, with the front matter that the Hugging Face hub reads."""
    base = Path(config.model.path).name if Path(config.model.path).is_dir() else config.model.path
    method = f"{'reward-augmented ' if config.relabel.goals else ''}{config.objective.name}"
    library, _ = LOADED_BY.get(kind, ("transformers", ""))
    task = "text-classification" if kind.startswith("reward") else "text-generation"
    return f"""---
library_name: {library}
pipeline_tag: {task}
tags: [rapo_jax, {config.objective.name}]
---

# {base}, {method}

Trained from {base} with rapo_jax {__version__} ({step} optimizer steps). {goal_in_words(goal_prompt)}

```python
{usage(kind)}
```

## Configuration

```yaml
{without_directories(config)}```
"""


def goal_in_words(goal_prompt: GoalPrompt) -> str:
    """What the exported chat template asks for."""
    sentence = goal_prompt.sentence(goal_prompt.baked)
    if goal_prompt.baked is None or sentence is None:
        return "The chat template asks for no goal."
    quoted = "\n> ".join(sentence.splitlines())
    return (
        f"The chat template asks for a score of {format_score(goal_prompt.baked)} by itself, in the "
        f"{goal_prompt.placement} turn:\n\n> {quoted}\n\nIts variable `goal` asks for another, from "
        f"{format_score(goal_prompt.goal_min)} to {format_score(goal_prompt.goal_max)}: "
        '`apply_chat_template(messages, goal=...)`, or `"chat_template_kwargs": {"goal": ...}` in a request to vLLM.'
    )


def usage(kind: CardKind) -> str:
    """Python that loads the export."""
    if kind == "model":
        return CHAT
    library, loader = LOADED_BY[kind]
    return f'from {library} import {loader}\n\nmodel = {loader}.from_pretrained("PATH_OF_THIS_DIRECTORY")'


def without_directories(config: Config) -> str:
    """The resolved configuration as YAML, absolute paths cut to their last part: cards are published."""
    lines = []
    for line in to_yaml(config).splitlines():
        key, _, value = line.partition(": ")
        path = Path(value.strip("'\""))
        lines.append(f"{key}: {path.name}\n" if path.is_absolute() else f"{line}\n")
    return "".join(lines)
