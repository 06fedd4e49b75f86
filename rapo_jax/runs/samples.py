"""What train.sample_every asks: a few held-out prompts, each at the lowest, the middle and the highest goal, greedily.

An answer follows from the weights alone, so that a resumed run says what it would have said.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from rapo_jax.batching.pipeline import evaluation_source, read_part
from rapo_jax.chat.encoding import Item, encode_all
from rapo_jax.config.tree import Config
from rapo_jax.data.draws import prompt_share
from rapo_jax.data.scaling import Scales
from rapo_jax.distributed import each_process, on_first
from rapo_jax.errors import UserError
from rapo_jax.generate.batches import BatchLimits
from rapo_jax.generate.engine import Question
from rapo_jax.generate.own import OwnEngine
from rapo_jax.generate.sampling import Sampling
from rapo_jax.messages import Record
from rapo_jax.models.lora import with_adapters
from rapo_jax.opened import answer_text
from rapo_jax.runs.setup import Setup
from rapo_jax.train.samples import SampleAnswer, Sampler
from rapo_jax.train.state import State

Score = Callable[[Sequence[Record]], list[float]]  # of records with one response each


@dataclass(frozen=True)
class Ask:
    """A prompt under a goal, in tokens."""

    record: Record
    goal: float | None
    tokens: Int32[np.ndarray, " _"]


def sampler_of(setup: Setup, scales: Scales, score: Score | None) -> Sampler | None:
    """Who samples while a run is trained; None where nobody asks. Raises UserError where nothing is held out."""
    config = setup.config
    if not config.train.sample_every:
        return None
    if not (config.data.eval_path or config.data.eval_fraction):
        raise UserError(
            f"train.sample_every={config.train.sample_every} asks held-out prompts, and nothing is held out: set data.eval_path or "
            "data.eval_fraction."
        )
    return functools.partial(answers_of, setup, asks_of(setup, scales), {}, score)


def goals_of(config: Config) -> tuple[float | None, ...]:
    """The lowest, the middle and the highest goal; none for a run that asks for none, or not for one level.

    >>> goals_of(Config())
    (1.0, 5.5, 10.0)
    """
    relabel = config.relabel
    if not relabel.has_highest_goal:
        return (None,)
    return relabel.goal_min, (relabel.goal_min + relabel.goal_max) / 2, relabel.goal_max


def asks_of(setup: Setup, scales: Scales) -> list[Ask]:
    """Held-out prompts, the first by a hash, under every goal."""
    config, goals = setup.config, goals_of(setup.config)
    with evaluation_source(config):
        records = read_part(config, "eval", scales=scales).records
    different = {record.prompt: record for record in records}
    drawn = sorted(different.values(), key=lambda each: prompt_share(each.prompt, seed=config.seed, purpose="samples"))
    pairs = [(record, goal) for record in drawn[: config.train.sample_prompts] for goal in goals]
    items = [
        Item(record.row, record.prompt, setup.goal_prompt.sentence(goal, source=record.source), (), (), record.tools)
        for record, goal in pairs
    ]
    encoded, _ = encode_all(
        setup.tokenizer,
        items,
        placement=setup.goal_prompt.placement,
        max_length=config.data.max_prompt_length,
        max_prompt_length=config.data.max_prompt_length - 1,
    )
    fits = [Ask(*pair, each.prompt) for pair, each in zip(pairs, encoded, strict=True) if each is not None]
    if not fits:
        raise UserError(
            f"none of the prompts of train.sample_every fits data.max_prompt_length={config.data.max_prompt_length}; raise it."
        )
    return fits


def answers_of(
    setup: Setup, asks: Sequence[Ask], compiled: dict, score: Score | None, state: State, frozen: dict[str, Any]
) -> list[SampleAnswer]:
    """The answers of the weights of a state; `compiled` keeps programs for the next ones."""
    config, spec = setup.config, setup.spec
    parameters = state.parameters if spec.lora is None else with_adapters(frozen, state.parameters)
    sampling = Sampling(max_new_tokens=config.train.sample_tokens)
    questions = [Question(number, ask.tokens, sampling) for number, ask in enumerate(asks)]
    engine = OwnEngine(
        parameters,
        spec,
        setup.mesh,
        jnp.dtype(config.model.dtype),
        setup.stop_tokens,
        BatchLimits(len(questions)),
        compiled=compiled,
    )
    said = {
        sample.prompt: sample.tokens for drawn in engine.sample(questions, num_samples=1) for sample in drawn.samples
    }
    texts = [answer_text(setup.tokenizer, said[number]) for number in range(len(asks))]
    scores = scores_of(asks, texts, score) if score else [None] * len(asks)
    return [
        SampleAnswer(ask.record.prompt[-1].content, ask.goal, text, len(said[number]), scored)
        for number, (ask, text, scored) in enumerate(zip(asks, texts, scores, strict=True))
    ]


def scores_of(asks: Sequence[Ask], texts: Sequence[str], score: Score) -> list[float]:
    """The scores of the first process, on all."""

    def records() -> Iterator[Record]:
        for number, (ask, text) in enumerate(zip(asks, texts, strict=True), 1):
            yield Record(number, ask.record.prompt, (text,), None, tools=ask.record.tools)

    return each_process(on_first(lambda: score(list(records()))))[0]
