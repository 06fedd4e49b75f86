"""Rewards for every response of a source, written as a file of scores: by a reward model, or implied by a trained policy.

A policy's implicit reward is beta * (log pi(y | x) - log pi_ref(y | x)), which is what direct alignment trained
(Rafailov et al., "Direct Preference Optimization", 2023, eq. 5). With it as rewards, preferences without scores become
reward-augmented (Zhang et al., 2024, section 6.2: a second round). The model is asked for no goal.

Partial results are kept beside the output until all are complete, so that an interrupted pass can resume.
"""

import functools
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from rapo_jax.batching.batch_plan import Group, num_branches
from rapo_jax.batching.groups import fingerprint_of_groups
from rapo_jax.borders import read_json_lines, read_object, write_json, write_json_lines
from rapo_jax.checkpoint import fingerprint
from rapo_jax.config.tree import Config
from rapo_jax.distributed import each_process, is_first, on_first, require_same
from rapo_jax.errors import UserError
from rapo_jax.locks import claimed
from rapo_jax.messages import Record
from rapo_jax.models.spec import require_vocabulary
from rapo_jax.opened import ClosedModel, ModelDirectory, Rendering
from rapo_jax.parallel import make_mesh
from rapo_jax.passes.column import Column, Mismatch
from rapo_jax.passes.forward_pass import Weights, fill, pass_options
from rapo_jax.runs.agreement import require_same_configuration, require_same_model
from rapo_jax.runs.trained import RunModel, find_model
from rapo_jax.score.groups import groups_to_score, read_all
from rapo_jax.space import on_disk


@dataclass(frozen=True)
class SourceScores:
    """The rewards of each record's responses, in their order, and where they come from."""

    rewards: list[tuple[float, ...]]
    origin: dict[str, str | float]


@dataclass(frozen=True)
class Scorer:
    """A reward model, or a policy with the reference that it was trained from and the beta of its implicit rewards."""

    policy: ClosedModel
    reference: ClosedModel | None = None
    beta: float = 1.0

    @property
    def tokenizer_of(self) -> ClosedModel:
        """The model whose tokenizer renders the rows."""
        return self.reference or self.policy

    @functools.cached_property
    def origin(self) -> dict[str, str | float]:
        """Where the scores come from. A run is named with the step of its checkpoint, which is read first."""
        if self.reference is None:
            return {"kind": "reward_model"} | named("model", self.policy)
        return {
            "kind": "implicit_reward",
            **named("model", self.policy),
            **named("reference", self.reference),
            "beta": self.beta,
        }


def named(role: str, model: ClosedModel) -> dict[str, str | float]:
    """A model's name and, of a run, its step."""
    step = {f"{role}_step": model.step_and_digest[0]} if isinstance(model, RunModel) else {}
    return {role: model.name, **step}


def score_source(
    config: Config, model: str, out: Path, *, reference: str | None, step: int | None = None
) -> SourceScores:
    """Scores data.path with the model (a directory, hub id or run directory) and writes `out` and, beside it, where the
    scores come from. `step` is that of a run's checkpoint; None takes the newest.

    A reward model (a classifier of one label) gives its scores; a language model its implicit rewards against `reference`
    (default: model.path), with beta = objective.beta. Raises Interrupted, and UserError for models that do not belong
    together and for responses that do not fit data.max_length.
    """
    require_same_configuration(config)
    kept = out.with_name(out.name + ".unfinished")
    on_first(lambda: refuse_output(out, goes_on=kept.exists()))
    scorer = open_scorer(config, model, reference=reference, step=step)
    records = read_all(config)
    if each_process(on_first(lambda: out.exists() and kept.exists()))[0]:
        _ = scorer.origin  # of a run: its checkpoint is read by all processes together
    if each_process(on_first(lambda: is_finished(out, kept, scorer, records)))[0]:
        rewards = [tuple(map(float, line["rewards"])) for _, line in read_json_lines(out)] if is_first() else []
        on_first(lambda: shutil.rmtree(kept))
        return SourceScores(rewards, scorer.origin)
    groups = groups_to_score(records, config, scorer.tokenizer_of, scored=scorer.policy)
    require_same({"the rows to score, in tokens": fingerprint_of_groups(groups)[:12]})
    for closed in (scorer.policy, scorer.reference):
        if isinstance(closed, ModelDirectory):  # the checkpoint of a run is read by all processes together
            require_same_model(closed.directory)
    with ExitStack() as stack:
        on_first(lambda: stack.enter_context(kept_for_us(kept)))
        rewards_GC = one_pass("policy", scorer.policy, groups=groups, kept=kept, config=config)[:, 1:]
        if scorer.reference is not None:
            reference_GC = one_pass("reference", scorer.reference, groups=groups, kept=kept, config=config)[:, 1:]
            rewards_GC = scorer.beta * (rewards_GC - reference_GC)
        rewards = [
            tuple(row[: len(record.responses)].tolist()) for row, record in zip(rewards_GC, records, strict=True)
        ]
        if is_first():
            write_scores(out, records, rewards, scorer.origin)
            shutil.rmtree(kept)
    return SourceScores(rewards, scorer.origin)


@contextmanager
def kept_for_us(kept: Path) -> Iterator[None]:
    """Keeps the directory of partial results from other processes while the block runs; an empty one is removed."""
    if kept.exists() and not kept.is_dir():
        raise UserError(f"{kept} is a file; it must be a directory.")
    with on_disk(kept):
        kept.mkdir(parents=True, exist_ok=True)
    try:
        with claimed(kept, said=str(kept)):
            yield
    finally:
        if kept.exists() and not any(kept.iterdir()):
            kept.rmdir()


def refuse_output(out: Path, *, goes_on: bool) -> None:
    """Raises UserError for an output that is not a .jsonl file, or that exists.

    Where a pass resumes, the scores and the file about their origin may exist; see `is_finished`.
    """
    if out.suffix != ".jsonl":
        raise UserError(f"--out={out}: scores are JSON lines; give a name that ends with .jsonl.")
    for path in (out, out.with_suffix(".json")):
        if path.exists() and not goes_on:
            raise UserError(f"{path} exists; nothing was written. Choose another --out.")


def is_finished(out: Path, kept: Path, scorer: Scorer, records: list[Record]) -> bool:
    """Whether the same command wrote its scores and was killed before it removed what it had kept.

    Raises UserError for scores of something else.
    """
    if not (out.exists() and kept.exists()):
        return False
    about = out.with_suffix(".json")
    rows = [(line.get("row"), len(line.get("rewards", ()))) for _, line in read_json_lines(out)]
    if (
        not about.exists()
        or read_object(about) != scorer.origin
        or rows != [(r.row, len(r.responses)) for r in records]
    ):
        raise UserError(f"{out} exists; nothing was written. Choose another --out.")
    return True


def open_scorer(config: Config, model: str, *, reference: str | None, step: int | None = None) -> Scorer:
    """Finds the models and checks that they belong together. Raises UserError where they do not."""

    def mesh() -> Mesh:
        return make_mesh(**vars(config.mesh))

    policy = find_model(model, option="--model", step=step, mesh=mesh)
    if policy.spec.scored:
        if reference:
            raise UserError(
                f"--model={model} is a reward model, whose scores need no reference; leave out --reference."
            )
        return Scorer(policy)
    against = find_model(reference or config.model.path, option="--reference", mesh=mesh)
    refuse_strangers(policy, against)
    beta = config.objective.options.get("beta")
    if beta is None:
        raise UserError(
            f"objective.name={config.objective.name} has no beta, by which implicit rewards are multiplied."
        )
    return Scorer(policy, against, beta)


def refuse_strangers(policy: ClosedModel, reference: ClosedModel) -> None:
    """Raises UserError unless both are language models of one shape and one vocabulary."""
    spec, other = policy.spec, reference.spec
    require_vocabulary(other, path=f"the reference {reference.name}")
    differs = [f"{name} {getattr(spec, name)} and {getattr(other, name)}" for name in "VDLNKHF"
               if getattr(spec, name) != getattr(other, name)]  # fmt: skip
    if spec.family != other.family:
        differs.insert(0, f"{spec.family} and {other.family}")
    if not differs:
        vocabularies = [
            model.open_tokenizer(Rendering(raw=True)).tokenizer.get_vocab() for model in (policy, reference)
        ]
        differs = ["another vocabulary"] if vocabularies[0] != vocabularies[1] else []
    if differs:
        raise UserError(
            f"{policy.name} was not trained from {reference.name} ({'; '.join(differs)}): an implicit reward compares a policy with "
            f"the model that it started from. Name that one with --reference, or with model.path."
        )


def one_pass(
    name: str, model: ClosedModel, *, groups: list[Group], kept: Path, config: Config, said: str = ""
) -> Float[np.ndarray, "G A"]:
    """The score (or summed log-probability) of every branch by one model. Raises Interrupted.

    `name` is that of the column in the directory `kept`, and what the pass is called unless `said` is given.
    """
    spec, mesh = model.spec, model.mesh
    # Before the weights are read: raises for an attention kernel that does not exist or does not run here.
    options = pass_options(config, spec, mesh, scored="last" if spec.scored else "responses")
    parameters = model.parameters(jnp.dtype(config.model.dtype))
    identity: dict[str, Any] = {
        "weights": fingerprint(parameters),
        "tokens": fingerprint_of_groups(groups),
        "dtype": config.model.dtype,
    }
    if isinstance(model, RunModel):
        identity["--step"] = model.step_and_digest[0]
    column = on_first(lambda: open_column(kept, name, groups=groups, identity=identity))
    return fill(
        Weights(spec, parameters, mesh),
        groups,
        options,
        column=column,
        needed=np.arange(len(groups)),
        said=said or name,
        place=kept,
    )


def open_column(kept: Path, name: str, *, groups: list[Group], identity: dict[str, Any]) -> Column:
    """The column of one model's numbers. Raises UserError where it belongs to something else."""
    column = Column(kept, name, shape=(len(groups), num_branches(groups)), identity=identity)
    try:
        column.open()
    except Mismatch as other:
        changed = [key for key in other.now if other.before.get(key) != other.now[key]]
        changed = [
            f"--step ({other.before.get(key)}, now {other.now[key]})" if key == "--step" else key for key in changed
        ]
        raise UserError(
            f"{kept} holds scores of something else; changed: {'; '.join(changed)}. "
            f"Choose another --out, or remove this directory. Nothing was overwritten."
        ) from other
    return column


def write_scores(out: Path, records: list[Record], rewards: list[tuple[float, ...]], origin: dict) -> None:
    """Writes one line a row, {"row": n, "rewards": [...]}, and OUT.json with their origin."""
    write_json(out.with_suffix(".json"), origin)
    write_json_lines(out, ({"row": record.row, "rewards": each} for record, each in zip(records, rewards, strict=True)))
