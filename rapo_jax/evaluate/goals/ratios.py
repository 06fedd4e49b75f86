"""How far answers are from the reference: log pi(y | x, g) - log pi_ref(y | x) of every answer, by two passes over their texts.

Answers are tokenized again; the token that ends one counts unless it was cut. The reference reads each answer twice: after the
prompt that the model read, goal included (what training weighs with beta), and after the prompt without a goal (one distribution
for all points, which best of n starts from too).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from rapo_jax.batching.batch_plan import Group
from rapo_jax.batching.groups import NAN, fingerprint_of_groups
from rapo_jax.chat.encoding import Item, encode_all
from rapo_jax.config.tree import Config
from rapo_jax.distributed import require_same
from rapo_jax.errors import UserError, counted
from rapo_jax.evaluate.goals.asking import Asked, Prompted
from rapo_jax.evaluate.goals.frontier import Ratios
from rapo_jax.evaluate.goals.sampling import Answer, Answers, Condition
from rapo_jax.evaluate.likelihoods import column_name
from rapo_jax.generate.answers import Request
from rapo_jax.opened import ClosedModel, require_ids_fit
from rapo_jax.runs.trained import RunModel
from rapo_jax.score.by_model import one_pass

LONGEST_PROMPT = Request.max_prompt_length  # of an engine
Flat = list[tuple[Condition, Prompted, Answer]]


def ratios_of(
    asked: Asked, answers: Answers, prompts: Sequence[Prompted], reference: ClosedModel, config: Config, *, out: Path
) -> dict[Condition, Ratios]:
    """By condition, [prompt, sample]. Raises Interrupted, and UserError."""
    flat = [
        (condition, prompt, answer)
        for condition, by_prompt in answers.items()
        for prompt, samples in zip(prompts, by_prompt, strict=True)
        for answer in samples
    ]
    groups = groups_of(asked, flat, config, with_goal=True)
    policy_A = logps(asked.model, groups, config, said=asked.label, out=out)
    same_A = logps(reference, groups, config, said=f"{reference.name} on the texts of {asked.label}", out=out)
    plain = groups_of(asked, flat, config, with_goal=False)
    plain_A = logps(reference, plain, config, said=f"{reference.name} on the same, without goals", out=out)
    tokens_A = np.array([len(group.responses[0]) for group in groups], float)
    found, at = {}, 0
    for condition, by_prompt in answers.items():
        shape = len(by_prompt), len(by_prompt[0])
        here = slice(at, at + shape[0] * shape[1])
        at = here.stop
        own, alike, other, tokens = (each[here].reshape(shape) for each in (policy_A, same_A, plain_A, tokens_A))
        found[condition] = Ratios(own - other, own - alike, tokens)
    return found


def groups_of(asked: Asked, flat: Flat, config: Config, *, with_goal: bool) -> list[Group]:
    """Every answer after its prompt, in the tokens of the model that gave it. Raises UserError for what cannot be read so."""
    opened = asked.model.open_tokenizer(asked.rendering)
    prompt_of = opened.goal_prompt
    items = []
    for number, (goal, prompt, answer) in enumerate(flat, 1):
        messages, sentence = prompt.messages, None
        if with_goal and goal is not None and asked.words is not None:
            messages = asked.words.write(messages, goal)
        elif with_goal and goal is not None:
            sentence = prompt_of.sentence(goal)
        items.append(Item(number, messages, sentence, (answer.text,), (), prompt.tools))
    most = LONGEST_PROMPT + max(1, *(answer.tokens for _, _, answer in flat)) * 2 + 16  # other tokens may be more
    encoded, _ = encode_all(
        opened.tokenizer, items, placement=prompt_of.placement, max_length=most, max_prompt_length=LONGEST_PROMPT
    )
    lost = sum(each is None for each in encoded)
    if lost:
        raise UserError(f"{asked.label}: {counted(lost, 'answer')} cannot be read again by its chat template.")
    groups = []
    for number, (each, (_, _, answer)) in enumerate(zip(encoded, flat, strict=True), 1):
        assert each is not None
        (response,) = each.responses
        cut = answer.cut and len(response) > 1
        groups.append(Group(each.prompt, (response[:-1] if cut else response,), (NAN,), 0, number))
    texts = (tokens for group in groups for tokens in (group.prompt, *group.responses))
    require_ids_fit(texts, opened.tokenizer, asked.model.spec, said=asked.model.name)
    return groups


def logps(model: ClosedModel, groups: list[Group], config: Config, *, said: str, out: Path) -> Float[np.ndarray, " A"]:
    """The log-probability of every answer by a model; kept in `out` under the model and the texts."""
    fingerprint = fingerprint_of_groups(groups)
    require_same({f"the answers, in tokens of {said}": fingerprint[:12]})
    step = model.step_and_digest[0] if isinstance(model, RunModel) else None
    name = column_name(model.name, f"{step} {fingerprint}")
    return one_pass(name, model, groups=groups, kept=out, config=config, said=said)[:, 1].astype(np.float64)
