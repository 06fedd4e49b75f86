"""What a checkpoint or a reference cache belongs to: hashes of model, tokenizer and data, and the settings that matter.

A run resumes only if its identity is that of its checkpoint; the error names every difference. Files may move, because
their content is hashed, not their paths.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any, cast

from transformers import PreTrainedTokenizerFast

from rapo_jax import __version__
from rapo_jax.batching import pipeline
from rapo_jax.batching.groups import what_is_scored
from rapo_jax.chat.dates import unpinned
from rapo_jax.chat.options import without_options
from rapo_jax.config.tree import Config
from rapo_jax.data.configured import Part, sources_of_part
from rapo_jax.errors import UserError
from rapo_jax.fingerprints import fingerprint
from rapo_jax.models.spec import identity_fields
from rapo_jax.parts import Fingerprints
from rapo_jax.runs.settings import Change, changes, not_default, settings_of, value_of
from rapo_jax.runs.setup import Setup

LENGTH = ("train.num_epochs", "train.max_steps")  # what makes a run longer or shorter, and changes no step
HASHES = ("model", "tokenizer", "data")
# Prefixes of the settings that a reference cache belongs to: those that shape the tokens, and the arithmetic. Other
# keys that affect tokens (columns, schemas, sources) are covered by the hash of the tokens.
OF_REFERENCES = ("data.max_", "data.chat_template", "data.template_options", "data.date")
OF_REFERENCES += ("relabel.", "model.dtype", "scored")
OF_ROWS = ("data.", "seed")  # which rows there are: data.eval_fraction holds others out under another seed


@dataclass(frozen=True)
class Identity:
    """SHA-256 of the starting weights, of the tokenizer, of rows and scores as read, and of all that the step sees;
    settings by dotted key. `given` names those that are not at their defaults; None where a record does not say.
    `explains` are settings that count only through the tokens, kept to say why those differ."""

    model: str
    tokenizer: str
    data: str
    tokens: str
    settings: dict[str, Any]
    given: list[str] | None = None
    explains: dict[str, Any] | None = None

    def record(self) -> dict[str, Any]:
        """The identity as it is stored with checkpoints and caches."""
        return vars(self) | {"given": not_default(self.settings)}


def recorded(record: dict[str, Any]) -> Identity:
    """The identity of a record that this or another version wrote; fields of a later version are skipped."""
    missing = [name for name in (*HASHES, "tokens", "settings") if name not in record]
    if missing:
        raise UserError(
            f"the record of what a run or cache belongs to lacks {', '.join(missing)}; it is damaged: restore it from a "
            "backup, or choose another run_dir or reference.cache."
        )
    fields: dict[str, Any] = {name: record.get(name) for name in Identity.__dataclass_fields__}
    return Identity(**fields)


def identify(setup: Setup, parameters: dict, data: pipeline.Dataset) -> Identity:
    """The identity of a run: what its checkpoints belong to."""
    named = {name: bare(template) for name, template in setup.goal_prompt.named_templates.items()}
    template = str(named or bare(setup.goal_prompt.chat_template))
    tokenizer = cast(PreTrainedTokenizerFast, setup.tokenizer).backend_tokenizer.to_str() + template
    return Identity(
        model=model_identity(setup, parameters),
        tokenizer=sha256(tokenizer),
        data=data.source_fingerprint,
        tokens=data.fingerprint,
        settings=settings_of(setup.config),
    )


def bare(template: str) -> str:
    """A chat template without its day and its options, which are settings."""
    return without_options(unpinned(template))


def reference_identity(run: Identity, data: pipeline.Dataset, config: Config) -> Identity:
    """What the reference's log-probabilities of these groups belong to: weights, tokens and arithmetic.

    The settings serve to explain why the tokens differ.
    """
    kept = of_references(run.settings | {"scored": what_is_scored(config)})
    explains = {key: value for key, value in run.settings.items() if key.startswith(OF_ROWS) and key not in kept}
    return replace(run, data=data.source_fingerprint, tokens=data.fingerprint, settings=kept, explains=explains)


def of_references(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that a reference cache belongs to."""
    return {key: value for key, value in settings.items() if key.startswith(OF_REFERENCES)}


def model_identity(setup: Setup, parameters: dict) -> str:
    """A hash of the model that a run starts from, whether its weights or adapters over them are trained."""
    return identity_of_weights(setup, fingerprint(parameters))


def identity_of_weights(setup: Setup, fingerprints: Fingerprints) -> str:
    """The same, from the fingerprints of the weights."""
    return sha256(json.dumps([fingerprints, identity_fields(setup.spec.base)]))


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def refuse_changes(record: dict[str, Any], step: int, identity: Identity, setup: Setup, *, num_groups: int) -> None:
    """Raises UserError naming everything that differs from what the checkpoint of this step was trained with.

    A run may become longer, not shorter.
    """
    before = recorded(record)
    changed = changes(before.settings, identity.settings, given=before.given)
    if steps_of(identity.settings, num_groups) >= steps_of(before.settings, num_groups):
        changed = [change for change in changed if change.key not in LENGTH]
    said = in_words(before, identity, changed, origins(setup.config, "train"))
    if said:
        shorter = " A run can become longer, not shorter." if any(change.key in LENGTH for change in changed) else ""
        raise UserError(
            f"{setup.run_dir} was trained up to step {step} with something else; changed: {'; '.join(said)}. "
            f"Undo the change, or choose another run_dir.{shorter} Nothing was overwritten."
        )


def steps_of(settings: dict[str, Any], num_groups: int) -> int:
    """The number of steps that a run with these settings has on so many groups."""
    epochs, steps, batch_size = (value_of(key, settings) for key in (*LENGTH, "train.batch_size"))
    return pipeline.number_of_steps(epochs, steps, batch_size=batch_size, num_groups=num_groups)


def reference_differences(record: dict[str, Any], identity: Identity, config: Config, part: Part) -> list[str]:
    """Descriptions of the differences between a cache's record and the requested identity; [] if the cache can be used."""
    before = recorded(record)
    changed = changes(of_references(before.settings), identity.settings, given=before.given)
    return in_words(before, identity, changed, origins(config, part))


def in_words(before: Identity, now: Identity, changed: list[Change], places: dict[str, str]) -> list[str]:
    """The differences between two identities; `places` are where model, tokenizer and data come from."""
    said = [f"the {name} ({places[name]})" for name in HASHES if getattr(before, name) != getattr(now, name)]
    said += [str(change) for change in changed]
    if not said and before.tokens != now.tokens and before.explains and now.explains:
        said = [str(change) for change in changes(before.explains, now.explains, given=None)]
    if not said and before.tokens != now.tokens:
        day = now.settings.get("data.date")
        another = (
            f"another day in the chat template, which now writes data.date={day}, or another version"
            if day
            else "another version"
        )
        return [f"the tokenization ({another} of rapo_jax? this is {__version__})"]
    return said


def origins(config: Config, part: Part) -> dict[str, str]:
    """Where model, tokenizer and data of a run come from."""
    data = ", ".join(source.options.path for source in sources_of_part(config, part))
    return {"model": config.model.path, "tokenizer": config.model.path, "data": data}
