"""The text part of models that also see: their config.json and tensors, read as those of the language model within.

What is not text is never read; `model_directory` (rapo_jax/models/directory.py) says so. Exports hold the language model alone.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from rapo_jax.borders import read_object
from rapo_jax.errors import UserError, shown
from rapo_jax.models.adapted import Adapters, Tensors

Json = Mapping[str, Any]
LEFT_OUT = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\.")
# Before transformers 4.52 the language model was a module beside the others, since then it is one of the model.
WITHIN = re.compile(r"(language_model\.model|model\.language_model)\.")
HEAD_WITHIN = re.compile(r"language_model\.lm_head\.")


@dataclass(frozen=True)
class Multimodal:
    """One `model_type` with a language model under `text_config`.

    left_out: keys beside text_config that say nothing of it.
    """

    text_type: str
    causal: str  # the class of the language model
    classifier: str
    left_out: frozenset[str]


MULTIMODAL = {
    "gemma3": Multimodal(
        "gemma3_text",
        "Gemma3ForCausalLM",
        "Gemma3TextForSequenceClassification",
        frozenset("vision_config mm_tokens_per_image boi_token_index eoi_token_index image_token_index".split()),
    )
}
# Where the whole model and its language model differ in these, the whole's are meant.
DECLARED_FOR_BOTH = frozenset(
    "bos_token_id dtype eos_token_id pad_token_id torch_dtype transformers_version use_cache".split()
)
OF_THE_WHOLE = frozenset({"model_type", "architectures", "text_config", "initializer_range"})


def is_multimodal(directory: Path) -> bool:
    """Whether a model directory holds more than a language model."""
    path = Path(directory) / "config.json"
    return (
        path.is_file()
        and str(read_object(path, remedy="it must be a model's config.json").get("model_type")) in MULTIMODAL
    )


def text_config(config: Json) -> dict[str, Any]:
    """The config.json of the language model within; that of any other model as it is.

    Tokens, dtype and what is tied are declared for the whole model; keys without a meaning here stay, to be refused by name.
    """
    known = MULTIMODAL.get(str(config.get("model_type")))
    if known is None:
        return dict(config)
    text = config.get("text_config")
    if not isinstance(text, dict):
        raise UserError(f"config.json: text_config={shown(text)} must be an object; download it again.")
    if text.get("model_type") not in (None, known.text_type):
        raise UserError(
            f"config.json: model_type={shown(text['model_type'])} in text_config must be {known.text_type!r}; download it again."
        )
    whole = {key: value for key, value in config.items() if key not in OF_THE_WHOLE | known.left_out}
    for key, value in whole.items():
        if key not in DECLARED_FOR_BOTH and None not in (value, text.get(key)) and value != text[key]:
            raise UserError(
                f"config.json: {key}={shown(value)}, and {shown(text[key])} in text_config; remove the one that is not meant."
            )
    architectures = config.get("architectures")
    scored = isinstance(architectures, list) and any(
        str(name).endswith("ForSequenceClassification") for name in architectures
    )
    named = {"architectures": [known.classifier if scored else known.causal]}
    return {"model_type": known.text_type} | text | whole | named


def text_name(name: str) -> str | None:
    """The name of a tensor within the language model; None for one of what is left out.

    >>> text_name("language_model.model.norm.weight"), text_name("vision_tower.vision_model.post_layernorm.bias")
    ('model.norm.weight', None)
    """
    if LEFT_OUT.match(name):
        return None
    return HEAD_WITHIN.sub("lm_head.", WITHIN.sub("model.", name, count=1), count=1)


def text_adapters(adapters: Adapters) -> Adapters:
    """Adapters of the whole model as those of the language model; others are not those of the base model, and refused there."""

    def renamed(tree: dict[str, Any]) -> dict[str, Any]:
        return {text_name(name) or name: value for name, value in tree.items()}

    whole, scales = renamed(adapters.whole), renamed(adapters.scale_of)
    return replace(adapters, factors=renamed(adapters.factors), whole=whole, scale_of=scales)


class TextTensors:
    """The tensors of a multimodal model under the names that its language model alone would give them."""

    def __init__(self, whole: Tensors):
        self.whole, self.directory = whole, whole.directory
        self.names = {text: name for name in whole.files if (text := text_name(name)) is not None}

    @property
    def files(self) -> Mapping[str, str]:
        return {text: self.whole.files[name] for text, name in self.names.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        return self.whole.shape(self.names[name])

    def dtype(self, name: str) -> str:
        return self.whole.dtype(self.names[name])

    def read(self, name: str, slices: tuple[slice, ...]) -> Shaped[np.ndarray, "..."]:
        return self.whole.read(self.names[name], slices)
