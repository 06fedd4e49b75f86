"""Opening a model, from a directory or from weights in memory, so that it can be prompted.

Training, relabelling, generation, scoring, evaluation and export all open models here, so that they agree on the chat
template, on how a goal is asked for and on the tokens that end an answer. Sampling is in rapo_jax/generate.

A directory exported by rapo carries a chat template that asks for a goal by itself. Here that goal is taken out again
(`tokenizer.chat_template` never writes one) and kept as `goal_prompt.baked`, so that no prompt asks twice.
"""

import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int
from transformers import PreTrainedTokenizerBase

from rapo_jax.chat.dates import pin, pinned_day, today
from rapo_jax.chat.goal_prompt import PAPER_GOAL_PROMPT, GoalPrompt, configured_goal_prompt, read_goal_prompt
from rapo_jax.chat.options import Options, refuse_unread, with_options
from rapo_jax.chat.templates import end_of_turn, load_tokenizer, own_template, resolve_placement
from rapo_jax.config.tree import Config
from rapo_jax.errors import UserError, counted
from rapo_jax.models.directory import declared_stop_tokens, model_directory, model_files, tokenizer_directory
from rapo_jax.models.files import load_parameters
from rapo_jax.models.spec import Spec, read_config, spec_from_config
from rapo_jax.parallel import mesh_of_replicas


@dataclass(frozen=True)
class OpenedTokenizer:
    """A model's tokenizer and how the model is prompted, without its weights.

    `tokenizer.chat_template` writes no goal by itself. `stop_tokens` end an answer: those that the directory declares
    and, unless texts are continued raw, the one that ends a turn. `has_own_goal_prompt` is False where the goal prompt
    is only the paper's, because the directory does not record how the model was trained.
    """

    directory: Path
    tokenizer: PreTrainedTokenizerBase
    goal_prompt: GoalPrompt
    stop_tokens: tuple[int, ...]
    has_own_goal_prompt: bool


@dataclass(frozen=True)
class OpenedModel:
    """Weights on a mesh, together with everything in an `OpenedTokenizer`.

    `dtype` is that of the computation; `name` is what error messages call the model.
    """

    name: str
    spec: Spec
    parameters: dict[str, Any]
    mesh: Mesh
    dtype: jnp.dtype
    tokenizer: PreTrainedTokenizerBase
    goal_prompt: GoalPrompt
    stop_tokens: tuple[int, ...]
    has_own_goal_prompt: bool


@dataclass(frozen=True)
class Rendering:
    """How texts are rendered, where it is not as the model's directory says.

    chat_template: a preset or a .jinja file in place of the directory's own template and the goal baked into it; `option` is
        its name for the user.
    template_options: values of the template's variables.
    raw: texts are continued as they are: no chat template is needed, and the end of a turn does not stop them.
    """

    chat_template: str | None = None
    template_options: Options | None = None
    option: str = "data.chat_template"
    raw: bool = False


AS_RECORDED = Rendering()


@runtime_checkable
class ClosedModel(Protocol):
    """A model whose tokenizer and weights can be read: a directory, or a checkpoint of a run (rapo_jax/runs/trained.py)."""

    @property
    def name(self) -> str:
        """What the user calls it."""
        ...

    @property
    def spec(self) -> Spec: ...

    @property
    def mesh(self) -> Mesh: ...

    def open_tokenizer(self, how: Rendering = AS_RECORDED) -> OpenedTokenizer:
        """As the function `open_tokenizer`."""
        ...

    def own_goal_prompt(self) -> GoalPrompt | None:
        """How the model is prompted by its own records, chat template included; None where it has no chat template."""
        ...

    def identity(self) -> dict[str, str | int]:
        """What its numbers belong to, by the names that a user knows."""
        ...

    def parameters(self, dtype: jnp.dtype) -> dict[str, Any]:
        """The weights, on `mesh`."""
        ...


@dataclass(frozen=True)
class ModelDirectory:
    """The closed model of a directory."""

    name: str
    directory: Path
    mesh: Mesh

    @property
    def spec(self) -> Spec:
        return spec_from_config(read_config(self.directory))

    def open_tokenizer(self, how: Rendering = AS_RECORDED) -> OpenedTokenizer:
        return open_tokenizer(self.directory, how)

    def own_goal_prompt(self) -> GoalPrompt | None:
        at = tokenizer_directory(self.directory)
        if recorded := read_goal_prompt(at):
            return recorded
        template = own_template(str(at))
        return replace(PAPER_GOAL_PROMPT, chat_template=template) if template else None

    def identity(self) -> dict[str, str | int]:
        """The beginning of a SHA-256 of configuration and weights."""
        hashes = hashlib.sha256()
        for file in model_files(self.directory):
            with file.open("rb") as opened:
                hashes.update(hashlib.file_digest(opened, "sha256").digest())
        return {"MODEL_DIR": hashes.hexdigest()[:12]}

    def parameters(self, dtype: jnp.dtype) -> dict[str, Any]:
        return load_parameters(self.directory, self.spec, mesh=self.mesh, dtype=dtype)


def open_tokenizer(
    directory: Path, how: Rendering = AS_RECORDED, *, trained_with: GoalPrompt | None = None
) -> OpenedTokenizer:
    """The tokenizer of a model directory and the goal prompt that the directory records, or else the paper's.

    `trained_with` is in place of what the directory records, for a run that started from it. Raises UserError where there is
    no tokenizer or no template, for options that the template does not read, and for a damaged rapo.json.
    """
    chat_template, raw, option = how.chat_template, how.raw, how.option
    directory = Path(directory)
    at = tokenizer_directory(directory)
    own = trained_with or read_goal_prompt(at)
    # Any template will do where it is replaced below, or none is applied.
    any_will_do = raw or (trained_with is not None and chat_template is None)
    tokenizer = load_tokenizer(str(at), chat_template="plain" if any_will_do else chat_template, option=option)
    named: dict[str, str] = own.named_templates if own else {}
    if isinstance(tokenizer.chat_template, dict):
        named = named or dict(sorted(tokenizer.chat_template.items()))  # files are listed in any order
        tokenizer.chat_template = tokenizer.chat_template["default"]
    if own and chat_template is None and not raw:
        tokenizer.chat_template = own.chat_template
    if how.template_options and not raw:
        of_tokenizer = tokenizer.special_tokens_map
        said = option.replace("chat-template", "template-options").replace("chat_template", "template_options")
        every = [tokenizer.chat_template, *named.values()] if chat_template is None else [tokenizer.chat_template]
        refuse_unread(every, how.template_options, given=of_tokenizer, option=said)
        tokenizer.chat_template = with_options(tokenizer.chat_template, how.template_options)
        named = {name: with_options(template, how.template_options) for name, template in named.items()}
    stops = declared_stop_tokens(directory)
    end_of_text = tokenizer.eos_token_id
    if not stops and isinstance(end_of_text, int):
        stops = [end_of_text]
    if raw:
        return OpenedTokenizer(directory, tokenizer, own or PAPER_GOAL_PROMPT, tuple(stops), own is not None)
    goal_prompt = own or replace(PAPER_GOAL_PROMPT, placement=resolve_placement(tokenizer, "auto"))
    goal_prompt = replace(goal_prompt, chat_template=tokenizer.chat_template, named_templates=named)
    if chat_template is not None:
        goal_prompt = replace(goal_prompt, baked=None, named_templates={})
    stops = sorted({*stops, end_of_turn(tokenizer)})
    return OpenedTokenizer(directory, tokenizer, goal_prompt, tuple(stops), own is not None)


def open_for_training(directory: Path, config: Config) -> OpenedTokenizer:
    """The tokenizer of the model that a run starts from, with the goal prompt, the options of the chat template and the date
    that the configuration asks for.

    Without data.date a template that writes a date writes the one that it is pinned to, else today's.
    """
    data = config.data
    opened = open_tokenizer(directory, Rendering(data.chat_template, data.template_options))
    own = opened.goal_prompt.chat_template
    pinned = functools.partial(pin, day=config.data.date or pinned_day(own) or today())
    opened.tokenizer.chat_template = pinned(own)
    goal_prompt = configured_goal_prompt(
        config.relabel,
        placement=resolve_placement(opened.tokenizer, config.relabel.placement),
        chat_template=opened.tokenizer.chat_template,
    )
    named = {name: pinned(template) for name, template in opened.goal_prompt.named_templates.items()}
    goal_prompt = replace(goal_prompt, named_templates=named)
    return replace(opened, goal_prompt=goal_prompt, has_own_goal_prompt=True)


def goal_prompt_for_relabelling(config: Config) -> GoalPrompt:
    """The goal prompt of a configuration. The model's tokenizer is opened only where relabel.placement=auto leaves the
    turn to its chat template."""
    if config.relabel.placement == "auto":
        return open_for_training(model_directory(config.model.path), config).goal_prompt
    return configured_goal_prompt(config.relabel, placement=config.relabel.placement, chat_template="")


def require_ids_fit(
    texts: Iterable[Int[np.ndarray, " _"]], tokenizer: PreTrainedTokenizerBase, spec: Spec, *, said: Path | str
) -> None:
    """Raises UserError for token ids beyond the embedding, which a lookup would clamp to its last row."""
    beyond = sorted({int(number) for tokens in texts for number in tokens[tokens >= spec.V]})
    if beyond:
        named = zip(tokenizer.convert_ids_to_tokens(beyond[:3]), beyond, strict=False)
        shown = ", ".join(f"{token!r} ({number})" for token, number in named) + (", ..." if len(beyond) > 3 else "")
        raise UserError(
            f"{said}: its tokenizer writes {counted(len(beyond), 'token')} beyond the model's vocabulary of {spec.V}: {shown}; take a "
            "model whose embedding was resized to its tokenizer, or a tokenizer without them."
        )


def answer_text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of an answer's tokens, without special tokens."""
    text = tokenizer.decode(list(tokens), skip_special_tokens=True)
    assert isinstance(text, str)  # a list only for a batch of answers
    return text


def with_weights(
    opened: OpenedTokenizer, parameters: dict[str, Any], *, spec: Spec, mesh: Mesh, dtype: jnp.dtype | str = "float32"
) -> OpenedModel:
    """An OpenedModel of weights that are already in memory; nothing is read from disk."""
    return OpenedModel(
        name=str(opened.directory),
        spec=spec,
        parameters=parameters,
        mesh=mesh,
        dtype=jnp.dtype(dtype),
        tokenizer=opened.tokenizer,
        goal_prompt=opened.goal_prompt,
        stop_tokens=opened.stop_tokens,
        has_own_goal_prompt=opened.has_own_goal_prompt,
    )


def load_model(model: ClosedModel, opened: OpenedTokenizer, *, dtype: jnp.dtype | str = "float32") -> OpenedModel:
    """The weights of a model whose tokenizer is open, in `dtype`."""
    parameters = model.parameters(jnp.dtype(dtype))
    return with_weights(opened, parameters, spec=model.spec, mesh=model.mesh, dtype=dtype)


def open_model(
    path: str | Path,
    *,
    mesh: Mesh | None = None,
    dtype: jnp.dtype | str = "float32",
    chat_template: str | None = None,
    raw: bool = False,
    option: str = "MODEL_DIR",
) -> OpenedModel:
    """Opens a model directory or hub id, weights included; `option` is what the user calls `path`.

    On `mesh` (default: all devices as fsdp). Where prompts are checked first, use `open_tokenizer` and then `load_model`:
    weights are slow to read.
    """
    model = ModelDirectory(str(path), model_directory(str(path), option=option), mesh or mesh_of_replicas())
    return load_model(model, model.open_tokenizer(Rendering(chat_template, raw=raw)), dtype=dtype)
