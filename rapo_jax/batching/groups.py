"""Tokenized preferences -> groups with the same number of responses each, with rewards and weights: what a loss compares."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rapo_jax.batch import BEST_SIDE, CHOSEN_SIDE, NO_SIDE, REJECTED_SIDE, Scored
from rapo_jax.batching.batch_plan import Group
from rapo_jax.chat.encoding import Encoded
from rapo_jax.config.tree import Config
from rapo_jax.data.relabelled import Relabelled, rewards_under_goal
from rapo_jax.errors import UserError
from rapo_jax.intervals import LARGEST
from rapo_jax.messages import Message

SIDE_CODE = {None: NO_SIDE, "chosen": CHOSEN_SIDE, "rejected": REJECTED_SIDE, "best": BEST_SIDE}
NAN = float("nan")
NOTHING = np.zeros(0, np.int32)


def what_is_scored(config: Config) -> Scored:
    if config.objective.is_reward_model:
        return "last"
    return "prompt_too" if config.objective.needs("prompt") else "responses"


def as_groups(kept: Sequence[tuple[Relabelled, Encoded]], config: Config) -> list[Group]:
    """Groups with the same number of responses each; missing responses are empty.

    A labelled response takes the first place if it is desirable, else the second. Where some groups ask for the highest
    goal (the additional term of Algorithm 1), weights turn the mean over all groups into the mean over these plus the
    mean over the others. For objectives with a divergence each group gets an unrelated response.
    """
    numbers: dict[tuple[int, tuple[int, ...]], int] = {}
    pairs = [(id(each.record), tuple(sorted(each.preference.order))) for each, _ in kept]
    groups = [
        replace(as_group(relabelled, encoded, config), pair=numbers.setdefault(pair, len(numbers)))
        for (relabelled, encoded), pair in zip(kept, pairs, strict=True)
    ]
    num_best = sum(group.side == BEST_SIDE for group in groups)
    if num_best:
        weights = {True: len(groups) / num_best, False: len(groups) / max(1, len(groups) - num_best)}
        groups = [replace(group, weight=group.weight * weights[group.side == BEST_SIDE]) for group in groups]
    width = max((len(group.responses) for group in groups), default=0)
    groups = [
        with_empty_responses(group, max(width, 1 if config.objective.responses == "one" else 2)) for group in groups
    ]
    if config.objective.needs("divergence"):
        prompts = [relabelled.record.prompt for relabelled, _ in kept]
        groups = with_unrelated(groups, prompts, config=config)
    return groups


def as_group(relabelled: Relabelled, encoded: Encoded, config: Config) -> Group:
    responses, rewards = encoded.responses, rewards_under_goal(relabelled, config)
    _require_float32(relabelled, rewards)
    if config.objective.responses == "labelled" and len(responses) == 1:
        desirable = relabelled.labels is None or relabelled.labels[0]
        responses, rewards = (
            ((responses[0], NOTHING), (*rewards, NAN)) if desirable else ((NOTHING, responses[0]), (NAN, *rewards))
        )
    return Group(
        prompt=encoded.prompt,
        responses=responses,
        rewards=rewards,
        side=SIDE_CODE[relabelled.preference.goal_of],
        row=relabelled.record.row,
        weight=relabelled.weight,
    )


def _require_float32(relabelled: Relabelled, rewards: Sequence[float]) -> None:
    """Raises UserError for rewards or a weight that would be infinite on the device; a squared distance soon is."""
    for what, numbers in (("rewards", rewards), ("weight", (relabelled.weight,))):
        if any(abs(number) > LARGEST for number in numbers):
            raise UserError(
                f"row {relabelled.record.row}: its {what} under the goal {relabelled.preference.goal} are "
                f"{', '.join(f'{number:g}' for number in numbers)}, beyond {LARGEST:.3g}, the largest float32; correct the "
                "scores, or map them to the goal scale with relabel.scale.fit."
            )


def with_empty_responses(group: Group, width: int) -> Group:
    """The group with empty responses added up to `width`."""
    missing = width - len(group.responses)
    if not missing:
        return group
    return replace(
        group, responses=(*group.responses, *[NOTHING] * missing), rewards=(*group.rewards, *[NAN] * missing)
    )


def with_unrelated(groups: Sequence[Group], prompts: Sequence[tuple[Message, ...]], *, config: Config) -> list[Group]:
    """Each group with an unrelated response: that of the nearest preceding group with another prompt.

    The search wraps around from the first group to the last. It compares `prompts`, those of the records, because a
    group's tokens include its goal and row numbers repeat between sources. The chosen response is taken where there is
    one, truncated to data.max_length.
    """
    added: list[Group] = []
    for n, group in enumerate(groups):
        other = next((groups[n - k] for k in range(1, len(groups)) if prompts[n - k] != prompts[n]), None)
        if other is None:
            raise UserError(
                f"objective.name={config.objective.name} compares with answers to other prompts, and the data has a single "
                "prompt; add rows with other prompts or choose another objective."
            )
        response = next(response for response in other.responses if len(response))
        added.append(replace(group, unrelated=response[: config.data.max_length - len(group.prompt)]))
    return added


def fingerprint_of_groups(groups: Sequence[Group]) -> str:
    """sha256 over everything that the step will see: tokens, order, goals, weights and rewards.

    An unrelated response is hashed as one more response without a reward, which is what it was in earlier versions.
    """
    digest = hashlib.sha256()
    for group in groups:
        for tokens in (group.prompt, *group.continuations):
            digest.update(np.int64(len(tokens)).tobytes() + tokens.tobytes())
        rewards = group.rewards if group.unrelated is None else (*group.rewards, NAN)
        digest.update(np.array([group.side, group.weight, *rewards], np.float64).tobytes())
    return digest.hexdigest()
