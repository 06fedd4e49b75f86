"""The goal sweep: ask a model for every goal, judge what it answers, and see whether quality follows the goal.

The paper does it with three goals and AlpacaEval (table 13); here with any goals and any judge.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from rapo_jax.chat.encoding import Item, encode_all
from rapo_jax.chat.goal_prompt import read_goal_prompt
from rapo_jax.chat.templates import load_tokenizer
from rapo_jax.errors import UserError
from rapo_jax.generate.decode import Sampling, answer_tokens
from rapo_jax.messages import Message
from rapo_jax.models.directory import eos_tokens
from rapo_jax.models.spec import read_config

Judge = Callable[[str, str], float]  # (prompt, response) -> score


@dataclass(frozen=True)
class Sweep:
    """Judged scores of one model, [goal, prompt], and one of its answers per goal to look at."""

    goals: tuple[float, ...]
    scores: np.ndarray
    examples: tuple[str, ...]

    @property
    def by_goal(self) -> np.ndarray:
        """Mean score at each goal."""
        return self.scores.mean(axis=1)

    @property
    def rank_correlation(self) -> float:
        """Spearman's rho between the goal asked and the score achieved, over all single answers; 0 if all are equal."""
        asked = np.repeat(self.goals, self.scores.shape[1])
        if np.ptp(self.scores) == 0:
            return 0.0
        return float(spearmanr(asked, self.scores.ravel()).statistic)


def sweep(
    model_dir: Path, prompts: Sequence[str], *, goals: Sequence[float], judge: Judge, sampling: Sampling
) -> Sweep:
    """Answers every prompt at every goal with an exported model and judges the answers."""
    goal_prompt = read_goal_prompt(model_dir)
    if goal_prompt is None:
        raise UserError(
            f"{model_dir} was not exported by rapo; a sweep needs to know how the model is asked for a goal."
        )
    tokenizer = load_tokenizer(str(model_dir), chat_template=None)
    tokenizer.chat_template = goal_prompt.chat_template
    items = [
        Item(index, (Message("user", prompt),), goal_prompt.sentence(goal), ())
        for goal in goals
        for index, prompt in enumerate(prompts)
    ]
    encoded, _ = encode_all(tokenizer, items, placement=goal_prompt.placement, max_length=4096, max_prompt_length=4095)
    answers = answer_tokens(
        model_dir,
        [e.prompt for e in encoded],
        sampling=sampling,
        stop_tokens=eos_tokens(model_dir, read_config(model_dir)),
        batch_size=64,
    )
    texts = [tokenizer.decode(answer.tokens, skip_special_tokens=True) for answer in answers]
    scores = np.array([judge(item.prompt[0].content, text) for item, text in zip(items, texts, strict=True)], float)
    return Sweep(tuple(goals), scores.reshape(len(goals), len(prompts)), tuple(texts[:: len(prompts)]))


def table(sweeps: dict[str, Sequence[Sweep]]) -> str:
    """Mean judged score by goal, a column a model (mean over its sweeps), with the rank correlation below."""
    names, goals = list(sweeps), next(iter(sweeps.values()))[0].goals
    width = max(12, *(len(name) + 2 for name in names))
    lines = ["goal asked".ljust(18) + "".join(name.rjust(width) for name in names)]
    for index, goal in enumerate(goals):
        means = [np.mean([s.by_goal[index] for s in sweeps[name]]) for name in names]
        lines.append(f"{goal:g}".rjust(10).ljust(18) + "".join(f"{mean:.2f}".rjust(width) for mean in means))
    correlations = [np.mean([s.rank_correlation for s in sweeps[name]]) for name in names]
    lines.append("rank correlation".ljust(18) + "".join(f"{rho:+.2f}".rjust(width) for rho in correlations))
    return "\n".join(lines)


def draw(sweeps: dict[str, Sequence[Sweep]], path: Path, *, title: str) -> None:
    """Score achieved over goal asked, a line a model, with the range of its sweeps where there are several."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.8), layout="constrained")
    goals = next(iter(sweeps.values()))[0].goals
    axes.plot(goals, goals, color="0.8", linestyle="--", label="score = goal", zorder=0)
    for name, runs in sweeps.items():
        means = np.array([run.by_goal for run in runs])
        rho = np.mean([run.rank_correlation for run in runs])
        (line,) = axes.plot(goals, means.mean(0), marker="o", label=f"{name}  (rank correlation {rho:+.2f})")
        if len(runs) > 1:
            axes.fill_between(goals, means.min(0), means.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel="goal asked", ylabel="mean judged score", title=title, xticks=goals, ylim=(0, max(goals) + 0.5))
    axes.legend(loc="upper left", frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
