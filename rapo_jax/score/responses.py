"""Rewards for every response of a source, written as a file of scores: by a reward model, or implied by a trained policy.

A policy's implicit reward is beta * (log pi(y | x) - log pi_ref(y | x)), which is what direct alignment trained
(Rafailov et al., "Direct Preference Optimization", 2023, eq. 5). With it as rewards, preferences without scores become
reward-augmented (Zhang et al., 2024, section 6.2: a second round). The model is asked for no goal.

What was computed is kept beside the output until all of it is there, so that an interrupted pass goes on.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rapo_jax.batching.batch_plan import Group, num_branches
from rapo_jax.batching.groups import NAN, fingerprint_of_groups, padded
from rapo_jax.chat.encoding import Encoded, Item, encode_all
from rapo_jax.chat.goal_prompt import read_goal_prompt
from rapo_jax.chat.templates import load_tokenizer
from rapo_jax.checkpoint import fingerprint
from rapo_jax.config.tree import Config
from rapo_jax.data.configured import read_source, sources_of_part
from rapo_jax.data.need import Need
from rapo_jax.distributed import is_first
from rapo_jax.errors import UserError
from rapo_jax.messages import Record
from rapo_jax.models.directory import model_directory
from rapo_jax.models.files import load_parameters
from rapo_jax.models.spec import Spec, read_config, require_vocabulary, spec_from_config
from rapo_jax.parallel import make_mesh
from rapo_jax.passes.column import Column, Mismatch
from rapo_jax.passes.forward_pass import Weights, fill, pass_options


@dataclass(frozen=True)
class Scored:
    """The rewards of each record's responses, in their order, and what they are in words."""

    rewards: list[tuple[float, ...]]
    origin: dict[str, str | float]


def score_source(config: Config, model: str, out: Path, *, reference: str | None, say: Callable[[str], None]) -> Scored:
    """Scores data.path with the model (a directory or hub id) and writes `out` and, beside it, what made it.

    A reward model (a classifier of one label) gives its scores; a language model its implicit rewards against `reference`
    (default: model.path), with beta = objective.beta. Raises Interrupted, and UserError for models that do
    not belong together, and for responses that do not fit data.max_length.
    """
    kept = out.with_name(out.name + ".unfinished")
    refuse_output(out, goes_on=kept.exists())
    directory = model_directory(model, option="--model")
    spec = spec_from_config(read_config(directory))
    against = None if spec.scored else model_directory(reference or config.model.path, option="--reference")
    if spec.scored and reference:
        raise UserError(f"--model={model} is a reward model, whose scores need no reference; leave out --reference.")
    if against:
        refuse_strangers(directory, against, spec)
    records = read_all(config)
    groups = groups_to_score(records, config, directory if spec.scored else against, say=say)
    beta = config.objective.options.get("beta")
    if not spec.scored and beta is None:
        raise UserError(
            f"objective.name={config.objective.name} has no beta, by which implicit rewards are multiplied."
        )
    numbers = []
    for name, place in {"policy": directory, "reference": against}.items():
        if place is not None:
            numbers.append(one_pass(name, place, groups, kept, config)[:, 1:])
    rewards_GC = numbers[0] if spec.scored else beta * (numbers[0] - numbers[1])
    rewards = [tuple(row[: len(record.responses)].tolist()) for row, record in zip(rewards_GC, records, strict=True)]
    origin = {"kind": "reward_model", "model": model}
    if not spec.scored:
        origin = {"kind": "implicit_reward", "model": model, "reference": reference or config.model.path, "beta": beta}
    if jax.process_index() == 0:
        write(out, records, rewards, origin)
        shutil.rmtree(kept)
    return Scored(rewards, origin)


def refuse_output(out: Path, *, goes_on: bool) -> None:
    """Raises UserError for an output that is no file of scores, or in whose place something is.

    A pass that goes on may have been stopped after its first file, which tells what made the scores.
    """
    if out.suffix != ".jsonl":
        raise UserError(f"--out={out}: scores are JSON lines; give a name that ends with .jsonl.")
    for path in (out,) if goes_on else (out, out.with_suffix(".json")):
        if path.exists():
            raise UserError(f"{path} exists; nothing was written. Choose another --out.")


def refuse_strangers(policy: Path, reference: Path, spec: Spec) -> None:
    """Raises UserError unless the two directories hold language models of one shape and one vocabulary."""
    other = spec_from_config(read_config(reference))
    require_vocabulary(other, path=f"the reference {reference}")
    differs = [f"{name} {getattr(spec, name)} and {getattr(other, name)}" for name in "VDLNKHF"
               if getattr(spec, name) != getattr(other, name)]  # fmt: skip
    if spec.family != other.family:
        differs.insert(0, f"{spec.family} and {other.family}")
    if not differs:
        vocabularies = [load_tokenizer(str(d), chat_template="plain").get_vocab() for d in (policy, reference)]
        differs = ["another vocabulary"] if vocabularies[0] != vocabularies[1] else []
    if differs:
        raise UserError(
            f"{policy} was not trained from {reference} ({'; '.join(differs)}): an implicit reward compares a policy with "
            f"the model that it started from. Name that one with --reference, or with model.path."
        )


def read_all(config: Config) -> list[Record]:
    """Every usable row of data.path with all its responses, also those that training leaves out: it does so after it has
    read the scores, and by settings that may change."""
    if config.data.sources:
        raise UserError("data.sources: scores are made for one source at a time; give data.path=... in its place.")
    data = replace(config.data, rewards="", drop_sources=(), drop_prompts="")
    plain = replace(config, data=data, relabel=replace(config.relabel, goals=(), attributes=()))
    (source,) = sources_of_part(plain, "train")
    return read_source(plain, source, Need("each")).records


def groups_to_score(
    records: list[Record], config: Config, tokenizer_of: Path, *, say: Callable[[str], None]
) -> list[Group]:
    """The records as they are, without goals, in the words of the model's own chat template."""
    known, data = read_goal_prompt(tokenizer_of), config.data
    tokenizer = load_tokenizer(str(tokenizer_of), chat_template=data.chat_template)
    if known and data.chat_template is None:
        tokenizer.chat_template = known.chat_template  # the exported one asks for a goal by itself

    def encode(items: list[Item], *, progress: bool = False) -> list[Encoded | None]:
        limits = {"max_length": data.max_length, "max_prompt_length": data.max_prompt_length}
        return encode_all(tokenizer, items, placement="user", progress=progress, **limits)[0]

    items = [Item(record.row, record.prompt, None, record.responses) for record in records]
    encoded = encode(items, progress=jax.process_index() == 0)
    encoded = [one_by_one(item, encode) if each is None else each for item, each in zip(items, encoded, strict=True)]
    unfit = [record.row for record, each in zip(records, encoded, strict=True) if each is None]
    if unfit:
        raise UserError(
            f"{len(unfit)} of {len(records)} rows do not fit data.max_length={data.max_length} and would have no "
            f"scores (the first: row {unfit[0]}); raise it."
        )
    num_cut = sum(any(each.response_tokens_cut) for each in encoded)
    if num_cut:
        say(
            f"{num_cut:,} of {len(records):,} rows have responses that are scored up to data.max_length={data.max_length} "
            "tokens only."
        )
    width = max(len(record.responses) for record in records)
    return [
        padded(Group(each.prompt, each.responses, (NAN,) * len(each.responses), 0, record.row), width)
        for record, each in zip(records, encoded, strict=True)
    ]


def one_by_one(item: Item, encode: Callable[[list[Item]], list[Encoded | None]]) -> Encoded | None:
    """A row that training drops because two of its responses are the same tokens: it asks for its scores all the same.

    None where the prompt does not fit, or is not the same beside every response.
    """
    alone = encode([item._replace(responses=(response,)) for response in item.responses])
    if any(each is None or not np.array_equal(each.prompt, alone[0].prompt) for each in alone):
        return None
    responses, cut = (tuple(getattr(each, name)[0] for each in alone) for name in ("responses", "response_tokens_cut"))
    return replace(alone[0], responses=responses, response_tokens_cut=cut)


def one_pass(name: str, directory: Path, groups: list[Group], kept: Path, config: Config) -> np.ndarray:
    """The score (or summed log-probability) of every branch by one model, [G, A]. Raises Interrupted."""
    spec, mesh = spec_from_config(read_config(directory)), mesh_of(config)
    parameters = load_parameters(directory, spec, mesh=mesh, dtype=jnp.dtype(config.model.dtype))
    identity = {
        "weights": fingerprint(parameters),
        "tokens": fingerprint_of_groups(groups),
        "dtype": config.model.dtype,
    }
    column = open_column(kept, name, groups, identity) if is_first() else None
    return fill(
        Weights(spec, parameters, mesh),
        groups,
        pass_options(config, spec, mesh, scored="last" if spec.scored else "responses"),
        column=column,
        needed=np.arange(len(groups)),
        said=name,
        place=kept,
    )


def open_column(kept: Path, name: str, groups: list[Group], identity: dict) -> Column:
    """The column of one model's numbers. Raises UserError where it belongs to something else."""
    if kept.exists() and not kept.is_dir():
        raise UserError(f"{kept} is a file; it must be a directory.")
    column = Column(kept, name, shape=(len(groups), num_branches(groups)), identity=identity)
    try:
        column.open()
    except Mismatch as other:
        changed = [key for key in other.now if other.before.get(key) != other.now[key]]
        raise UserError(
            f"{kept} holds scores of something else; changed: {'; '.join(changed)}. "
            f"Choose another --out, or remove this directory. Nothing was overwritten."
        ) from other
    return column


def mesh_of(config: Config) -> Mesh:
    return make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor)


def write(out: Path, records: list[Record], rewards: list[tuple[float, ...]], origin: dict) -> None:
    """One line a row, {"row": n, "rewards": [...]}, and OUT.json with what made them; the file appears whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".tmp")
    lines = (json.dumps({"row": record.row, "rewards": each}) for record, each in zip(records, rewards, strict=True))
    temporary.write_text("".join(line + "\n" for line in lines))
    out.with_suffix(".json").write_text(json.dumps(origin, indent=2) + "\n")
    temporary.replace(out)
