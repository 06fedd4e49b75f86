"""Scores by models on our own devices: a reward model's, and the rewards that a trained policy implies.

A policy's implicit reward is beta * (log pi(y | x) - log pi_ref(y | x)), which is what direct alignment trained
(Rafailov et al., "Direct Preference Optimization", 2023, eq. 5). With it as rewards, preferences without scores become
reward-augmented (Zhang et al., 2024, section 6.2: a second round). The model is asked for no goal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from rapo_jax.batching.batch_plan import Group, num_branches
from rapo_jax.batching.groups import fingerprint_of_groups
from rapo_jax.config.tree import Config
from rapo_jax.distributed import on_first, require_same
from rapo_jax.errors import UserError
from rapo_jax.fingerprints import fingerprint
from rapo_jax.messages import Record
from rapo_jax.models.spec import require_vocabulary
from rapo_jax.opened import ClosedModel, ModelDirectory, Rendering
from rapo_jax.passes.column import Column, Mismatch
from rapo_jax.passes.forward_pass import Weights, fill, pass_options
from rapo_jax.runs.agreement import require_same_model
from rapo_jax.runs.trained import RunModel, find_model
from rapo_jax.score.groups import groups_to_score
from rapo_jax.score.scorer import MakeMesh, Origin, RowScores, ScoreRequest, refuse_options

LOGPS = "logps"  # of --write


@dataclass(frozen=True)
class RewardModel:
    """The scorer of a classifier of one label."""

    config: Config
    model: ClosedModel
    kind: str = "reward_model"

    @property
    def origin(self) -> Origin:
        return {"kind": self.kind, **named("model", self.model)}

    def score(self, records: Sequence[Record], *, kept: Path) -> list[RowScores]:
        groups = agreed_groups(records, self.config, read_by=self.model, scored=self.model)
        rewards_GC = one_pass("policy", self.model, groups=groups, kept=kept, config=self.config)[:, 1:]
        return [RowScores(each) for each in by_record(rewards_GC, records)]


@dataclass(frozen=True)
class ImplicitReward:
    """The scorer of a policy with the reference that it was trained from. `with_logps` writes what it is computed from."""

    config: Config
    policy: ClosedModel
    reference: ClosedModel
    beta: float
    with_logps: bool = False
    kind: str = "implicit_reward"

    @property
    def origin(self) -> Origin:
        """A run is named with the step of its checkpoint, which is read first."""
        return {
            "kind": self.kind,
            **named("model", self.policy),
            **named("reference", self.reference),
            "beta": self.beta,
        }

    def score(self, records: Sequence[Record], *, kept: Path) -> list[RowScores]:
        groups = agreed_groups(records, self.config, read_by=self.reference, scored=self.policy)
        inputs: dict[str, Any] = {"groups": groups, "kept": kept, "config": self.config}
        policy_GC = one_pass("policy", self.policy, **inputs)[:, 1:]
        reference_GC = one_pass("reference", self.reference, **inputs)[:, 1:]
        rewards = by_record(self.beta * (policy_GC - reference_GC), records)
        if not self.with_logps:
            return [RowScores(each) for each in rewards]
        logps = zip(by_record(policy_GC, records), by_record(reference_GC, records), strict=True)
        return [
            RowScores(each, more={"policy_logps": policy, "reference_logps": reference})
            for each, (policy, reference) in zip(rewards, logps, strict=True)
        ]


def open_by_kind(config: Config, request: ScoreRequest, mesh: MakeMesh) -> RewardModel | ImplicitReward:
    """The scorer that --model is by itself. Raises UserError for models that do not belong together."""
    policy = find_model(request.model, option="--model", step=request.step, mesh=mesh)
    if not policy.spec.scored:
        return implicit_reward(config, request, policy, mesh)
    if request.reference:
        raise UserError(
            f"--model={request.model} is a reward model, whose scores need no reference; leave out --reference."
        )
    if request.write:
        raise UserError(
            f"--write={','.join(request.write)} is of implicit rewards, and --model={request.model} is a reward model; "
            "leave it out."
        )
    return RewardModel(config, policy)


def open_reward_model(config: Config, request: ScoreRequest, mesh: MakeMesh) -> RewardModel:
    """--scorer=reward_model."""
    refuse_options(request, of=("--model", "--step"))
    policy = find_model(request.model, option="--model", step=request.step, mesh=mesh)
    if not policy.spec.scored:
        raise UserError(
            f"--model={request.model} is a language model, and --scorer=reward_model needs a classifier of one label; name "
            "one, or take --scorer=implicit."
        )
    return RewardModel(config, policy)


def open_implicit(config: Config, request: ScoreRequest, mesh: MakeMesh) -> ImplicitReward:
    """--scorer=implicit."""
    refuse_options(request, of=("--model", "--step", "--reference", "--write"))
    policy = find_model(request.model, option="--model", step=request.step, mesh=mesh)
    if policy.spec.scored:
        raise UserError(
            f"--model={request.model} is a reward model, and --scorer=implicit needs a policy trained on preferences; name one, "
            "or take --scorer=reward_model."
        )
    return implicit_reward(config, request, policy, mesh)


def implicit_reward(config: Config, request: ScoreRequest, policy: ClosedModel, mesh: MakeMesh) -> ImplicitReward:
    """The policy with its reference: --reference, or else model.path."""
    against = find_model(request.reference or config.model.path, option="--reference", mesh=mesh)
    refuse_strangers(policy, against)
    beta = config.objective.options.get("beta")
    if beta is None:
        raise UserError(
            f"objective.name={config.objective.name} has no beta, by which implicit rewards are multiplied."
        )
    return ImplicitReward(config, policy, against, beta, LOGPS in request.write)


def named(role: str, model: ClosedModel) -> Origin:
    """A model's name and, of a run, its step."""
    step = {f"{role}_step": model.step_and_digest[0]} if isinstance(model, RunModel) else {}
    return {role: model.name, **step}


def agreed_groups(
    records: Sequence[Record], config: Config, *, read_by: ClosedModel, scored: ClosedModel
) -> list[Group]:
    """The records in the tokens of one model, the same in every process, which all have the same models."""
    groups = groups_to_score(list(records), config, read_by, scored=scored)
    require_same({"the rows to score, in tokens": fingerprint_of_groups(groups)[:12]})
    for closed in (scored, read_by):
        if isinstance(closed, ModelDirectory):  # the checkpoint of a run is read by all processes together
            require_same_model(closed.directory)
    return groups


def by_record(numbers_GC: Float[np.ndarray, "G C"], records: Sequence[Record]) -> list[tuple[float, ...]]:
    """The numbers of each record's own responses."""
    return [tuple(row[: len(record.responses)].tolist()) for row, record in zip(numbers_GC, records, strict=True)]


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
