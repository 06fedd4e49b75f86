"""The groups that `rapo plan` packs: the run's own if they can be read here, else groups of UltraFeedback's lengths."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rapo_jax.batching import pipeline
from rapo_jax.batching.batch_plan import Group
from rapo_jax.batching.groups import NAN
from rapo_jax.batching.kept import Place
from rapo_jax.config.tree import AUTO_CACHE, Config
from rapo_jax.data.configured import sources_of_part
from rapo_jax.data.files import NoSuchSource
from rapo_jax.opened import open_for_training

NUM_RECORDS = 61_000  # of UltraFeedback, binarized
MEAN_PROMPT, GOAL_TOKENS, MEAN_RESPONSE = 185, 40, 300
SIGMA = 0.8  # of the logarithm of a length: the 95th percentile is 2.7 means


@dataclass(frozen=True)
class Lengths:
    """Groups to pack, and where their lengths come from, for the report."""

    groups: list[Group]
    source: str


def read_lengths(config: Config, model_dir: Path) -> Lengths:
    """The groups of data.path; groups like UltraFeedback's where it is not set, or it or the tokenizer is not here.

    Raises UserError for data and tokenizers that are here and cannot be used: a plan for other data would hide a mistake.
    """
    if not (config.data.path or config.data.sources):
        return Lengths(like_ultrafeedback(config), "lengths like UltraFeedback's (data.path is not set)")
    sources_of_part(config, "train")  # raises: a misspelt schema must not pass for a missing file
    if not any(model_dir.glob("tokenizer*")):
        return Lengths(like_ultrafeedback(config), "lengths like UltraFeedback's (no tokenizer to read here)")
    opened = open_for_training(model_dir, config)
    try:
        place = Place(Path(config.data.cache)) if config.data.cache not in ("", AUTO_CACHE) else None
        data = pipeline.load_training(config, opened.tokenizer, goal_prompt=opened.goal_prompt, place=place)
    except NoSuchSource:
        return Lengths(like_ultrafeedback(config), "lengths like UltraFeedback's (no data.path to read here)")
    return Lengths(data.groups, data.report["path"])


def like_ultrafeedback(config: Config) -> list[Group]:
    """One group per record and goal, with lognormal lengths cut to the configuration's limits; always the same."""
    random, data = np.random.default_rng(0), config.data
    num_responses = {"one": 1, "pair": 2, "labelled": 2, "all": 4}[config.objective.responses]
    unrelated = config.objective.needs("divergence")
    num_goals = len(config.relabel.goals) or 1

    def lengths(mean: float, shape: tuple[int, ...]) -> np.ndarray:
        return np.ceil(random.lognormal(np.log(mean) - SIGMA**2 / 2, SIGMA, shape)).astype(int)

    prompts = lengths(MEAN_PROMPT, (NUM_RECORDS,)) + GOAL_TOKENS * bool(config.relabel.goals)
    prompts = np.minimum(prompts, data.max_prompt_length)
    responses = np.minimum(
        lengths(MEAN_RESPONSE, (NUM_RECORDS, num_responses + unrelated)), data.max_length - prompts[:, None]
    )
    blank = np.zeros(data.max_length, np.int32)
    return [
        Group(
            prompt=blank[:prompt],
            responses=tuple(blank[:n] for n in each[:num_responses]),
            rewards=(NAN,) * num_responses,
            side=0,
            row=record,
            unrelated=blank[: each[-1]] if unrelated else None,
        )
        for record, (prompt, each) in enumerate(zip(prompts.tolist(), responses.tolist(), strict=True))
        for _ in range(num_goals)
    ]
