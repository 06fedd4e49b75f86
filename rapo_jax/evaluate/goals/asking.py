"""Who is asked for what: the models of the suite `goals`, each with its goals, and the prompts.

A model that records how it is asked for a goal is asked for goals of its own scale. One that does not (the base, a model trained
by plain DPO) can only be compared with: it is asked for nothing, and in the words of a model that knows goals (Zhang et al.,
2024, table 13).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rapo_jax.chat.goal_prompt import GoalPrompt
from rapo_jax.chat.templates import resolve_placement
from rapo_jax.config.tree import Config
from rapo_jax.data.draws import prompt_share
from rapo_jax.errors import UserError, counted
from rapo_jax.evaluate.held_out import held_out_pairs
from rapo_jax.generate.asked import require_on_scale
from rapo_jax.generate.engine import ServerOptions
from rapo_jax.generate.prompts import read_prompts
from rapo_jax.messages import Message
from rapo_jax.opened import ClosedModel, Rendering
from rapo_jax.score.scorer import JudgeOptions

MOST_GOALS = 11  # of the default grid
IN_WORDS = "goal in the prompt"


@dataclass(frozen=True)
class Drawing:
    """How answers are drawn: `num_samples` to every prompt and goal, `best_of` to every prompt without a goal. `best_of` None is
    as many as there are answers with goals."""

    num_samples: int = 1
    best_of: int | None = None
    temperature: float = 0.8
    top_p: float = 0.95
    max_new_tokens: int = 512
    seed: int = 0
    batch_size: int = 16
    server: ServerOptions | None = None


@dataclass(frozen=True)
class GoalRequest:
    """What the options of `rapo evaluate` ask of the suite `goals`. `scorers` and `scales` are as they were written; the n-th
    scale is the n-th scorer's. `patience`: seconds that a program which scores may write nothing. `goals` () are those from the lowest to the highest of each model's own scale."""

    prompts: str = ""
    scorers: tuple[str, ...] = ()
    scales: tuple[str, ...] = ()
    bases: tuple[ClosedModel, ...] = ()
    goals: tuple[float, ...] = ()
    any_goal: bool = False
    drawing: Drawing = field(default_factory=Drawing)
    judge: JudgeOptions | None = None
    patience: float | None = None


@dataclass(frozen=True)
class Prompted:
    """A prompt as it is asked: its messages and tools."""

    messages: tuple[Message, ...]
    tools: str = ""


@dataclass(frozen=True)
class Asked:
    """A model and what it is asked for. `goals` ascend; `scale` are the ends of its scale. `words` writes the goal into the
    prompt of a model that knows none; None where the model has its own way. `plain`: answers to each prompt without a goal."""

    label: str
    model: ClosedModel
    goals: tuple[float, ...]
    scale: tuple[float, float]
    plain: int
    words: GoalPrompt | None = None
    rendering: Rendering = field(default_factory=Rendering)


def ask_all(
    models: Sequence[ClosedModel], labels: Sequence[str], request: GoalRequest, config: Config
) -> tuple[list[Asked], list[Asked]]:
    """(those that know goals, those to compare with: each base as it is, and in the words of the first that knows goals).

    Raises UserError for a model that knows no goals, and for goals outside a model's scale unless they are asked for.
    """
    own: list[tuple[str, ClosedModel, GoalPrompt]] = []
    for model, label in zip(models, labels, strict=False):
        refuse_reward_model(model)
        opened = model.open_tokenizer(Rendering(raw=True))
        if not opened.has_own_goal_prompt:
            raise UserError(
                f"{model.name} does not record how it is asked for a goal (rapo.json), so it knows none; name it with --base, "
                "to compare a model that knows goals with it."
            )
        own.append((label, model, opened.goal_prompt))
    if not own:
        raise UserError("the suite goals needs a model that knows goals, and none is named; add MODEL or --model DIR.")
    knowing = []
    for label, model, prompt in own:
        goals = request.goals or grid_between(prompt.goal_min, prompt.goal_max)
        if not request.any_goal:
            require_on_scale(prompt, {f"--goals: {goal:g}": goal for goal in goals}, model=model.name)
        plain = request.drawing.best_of
        plain = len(goals) * request.drawing.num_samples if plain is None else plain
        plain = min(plain, 1) if request.drawing.temperature == 0 else plain  # greedy answers are all alike
        knowing.append(Asked(label, model, goals, (prompt.goal_min, prompt.goal_max), plain))
    compared, prompt = [], own[0][2]
    for model, label in zip(request.bases, labels[len(models) :], strict=True):
        refuse_reward_model(model)
        how = rendering_of(config)
        placement = resolve_placement(model.open_tokenizer(how).tokenizer, "auto")
        first, words = knowing[0], replace(prompt, placement=placement)
        compared.append(Asked(label, model, (), first.scale, max(1, first.plain), None, how))
        compared.append(Asked(f"{label}, {IN_WORDS}", model, first.goals, first.scale, 0, words, how))
    return knowing, compared


def refuse_reward_model(model: ClosedModel) -> None:
    if model.spec.scored:
        raise UserError(f"{model.name} is a reward model, which answers nothing; name a language model.")


def rendering_of(config: Config) -> Rendering:
    """How a model is prompted that does not say so itself."""
    return Rendering(config.data.chat_template, config.data.template_options)


def grid_between(low: float, high: float) -> tuple[float, ...]:
    """At most eleven goals, evenly spaced over a scale; whole numbers where its ends are whole."""
    if float(low).is_integer() and float(high).is_integer():
        count = min(MOST_GOALS, round(high - low) + 1)
        return tuple(float(goal) for goal in np.unique(np.linspace(low, high, count).round()))
    return tuple(float(f"{goal:.4g}") for goal in np.linspace(low, high, MOST_GOALS))


def prompts_of(request: GoalRequest, config: Config, *, most: int | None) -> list[Prompted]:
    """The different prompts of --prompts or, without it, of the held-out pairs of the configuration: at most so many, drawn by
    its seed."""
    if request.prompts:
        found = [Prompted(each.messages, each.tools) for each in read_prompts(request.prompts)]
    else:
        if not (config.data.path or config.data.sources):
            raise UserError(
                "the suite goals needs prompts: add --prompts FILE, or a CONFIG (or run) whose held-out pairs have some."
            )
        found = [Prompted(record.prompt, record.tools) for record in held_out_pairs(config, most=None)]
    found = list(dict.fromkeys(found))
    drawn = found
    if most is not None and most < len(found):  # nested: a larger number takes the same ones and more
        shares = [prompt_share(each.messages, seed=config.seed, purpose="sample") for each in found]
        last = sorted(shares)[most - 1]
        drawn = [each for each, share in zip(found, shares, strict=True) if share <= last]
    if len(drawn) < 2:
        raise UserError(
            f"{counted(len(drawn), 'prompt')} are too few for an interval; give two or more different ones."
        )
    return drawn
