"""The model card (README.md) of an export: what it is, how to use it, and the configuration that trained it."""

from pathlib import Path
from typing import Any, Literal

from huggingface_hub import ModelCardData

from rapo_jax import __version__
from rapo_jax.chat.goal_prompt import GoalPrompt
from rapo_jax.chat.templates import Ending
from rapo_jax.config.files import as_dict
from rapo_jax.config.tree import Config
from rapo_jax.config.yaml_text import yaml_text
from rapo_jax.errors import masked
from rapo_jax.export.origins import Origins
from rapo_jax.relabel import format_score

CardKind = Literal["model", "adapter", "reward model", "reward adapter"]

CHAT = """\
from transformers import pipeline

chat = pipeline("text-generation", model="PATH_OF_THIS_DIRECTORY")
print(chat([{"role": "user", "content": "Hello!"}], max_new_tokens=200)[0]["generated_text"][-1]["content"])"""

ADAPTER = """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

directory = "PATH_OF_THIS_DIRECTORY"
tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoPeftModelForCausalLM.from_pretrained(directory)
text = tokenizer.apply_chat_template(
    [{{"role": "user", "content": "Hello!"}}], tokenize=False, add_generation_prompt=True
)
tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
answer = model.generate(input_ids=tokens, max_new_tokens=200, eos_token_id={stops})
print(tokenizer.decode(answer[0, tokens.shape[1]:], skip_special_tokens=True))"""

REWARD = """\
import torch
{imports}

directory = "PATH_OF_THIS_DIRECTORY"
tokenizer = AutoTokenizer.from_pretrained(directory)
model = {load}
conversation = [
    {{"role": "user", "content": "What is two plus two?"}},
    {{"role": "assistant", "content": "Four."}},
]
text = tokenizer.apply_chat_template(conversation, tokenize=False)
text = text.removesuffix({suffix!r}) + {kept!r}  # the score is read where the answer ends
tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
with torch.no_grad():
    print(model(input_ids=tokens).logits[0, 0].item())  # higher is better"""
REWARD_PARTS = {
    "reward model": {
        "imports": "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "load": "AutoModelForSequenceClassification.from_pretrained(directory)",
    },
    "reward adapter": {
        "imports": "from peft import AutoPeftModelForSequenceClassification\nfrom transformers import AutoTokenizer",
        "load": "AutoPeftModelForSequenceClassification.from_pretrained(directory, num_labels=1)",
    },
}


def model_card(
    config: Config,
    step: int,
    goal_prompt: GoalPrompt,
    *,
    kind: CardKind,
    origins: Origins,
    ending: Ending,
    stops: tuple[int, ...],
) -> str:
    """The card's text, with the front matter that the Hugging Face hub reads."""
    path = Path(config.model.path)
    base = path.name if path.is_absolute() or path.is_dir() else config.model.path
    method = f"{'reward-augmented ' if config.relabel.goals else ''}{config.objective.name}"
    content = f"""---
{front_matter(config, kind, origins=origins)}
---

# {base}, {method}

Trained from {base} with rapo_jax {__version__} ({step} optimizer steps). {goal_in_words(goal_prompt)}

```python
{usage(kind, ending, stops=stops)}
```

## Configuration

```yaml
{without_directories(config)}```
"""
    return content


def front_matter(config: Config, kind: CardKind, *, origins: Origins) -> str:
    """The card's metadata as YAML."""
    licence: dict[str, Any] = dict(origins.licence)
    data = ModelCardData(
        base_model=origins.base_model,
        datasets=list(origins.datasets) or None,
        library_name="peft" if "adapter" in kind else "transformers",
        pipeline_tag="text-classification" if kind.startswith("reward") else "text-generation",
        tags=["rapo_jax", config.objective.name],
        **licence,
    )
    return data.to_yaml()


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


def usage(kind: CardKind, ending: Ending, *, stops: tuple[int, ...]) -> str:
    """Python that runs the export. `ending` is how its template ends an answer, `stops` are the tokens that end one."""
    if kind == "model":
        return CHAT
    if kind == "adapter":
        return ADAPTER.format(stops=list(stops))
    return REWARD.format(suffix=ending.suffix, kept=ending.kept, **REWARD_PARTS[kind])


def without_directories(config: Config) -> str:
    """The resolved configuration as YAML, absolute paths cut to their last part and secrets masked: cards are published."""
    return yaml_text(_without_directories(as_dict(config)))


def _without_directories(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_directories(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_directories(item) for item in value]
    if not isinstance(value, str):
        return value
    return Path(value).name if Path(value).is_absolute() else masked(value)
