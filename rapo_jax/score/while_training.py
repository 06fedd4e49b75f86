"""The scorer of train.sample_scorer: one that needs no device, which training has, and no options of its own."""

from collections.abc import Callable, Sequence

from rapo_jax.config.tree import Config
from rapo_jax.errors import UserError, counted
from rapo_jax.messages import Record
from rapo_jax.parallel import make_mesh
from rapo_jax.score.outside import OutsideScorer, refuse_more_than_texts
from rapo_jax.score.scorer import ScoreRequest, without_secrets
from rapo_jax.score.scorers import PREFIXES, open_scorer


def sample_scorer(config: Config) -> Callable[[Sequence[Record]], list[float]] | None:
    """The scores of records with one response each; None where train.sample_scorer is not set. Raises UserError for a scorer
    that cannot be had."""
    name = config.train.sample_scorer
    if not name:
        return None
    said = f"train.sample_scorer={without_secrets(name)}"
    if not name.startswith(tuple(PREFIXES)):
        raise UserError(
            f"{said} is not one of python:MODULE:FUNCTION and command:PROGRAM, which leave the devices to training; score the checkpoints "
            "with rapo evaluate, or take one of these."
        )
    scorer = open_scorer(config, ScoreRequest(name), lambda: make_mesh(**vars(config.mesh)))
    assert isinstance(scorer, OutsideScorer)

    def score(records: Sequence[Record]) -> list[float]:
        refuse_more_than_texts(records, kind=scorer.kind)
        found = {place: scores.rewards[0] for place, scores in scorer.ask(records)}
        if len(found) < len(records):
            raise UserError(f"{said} gave no score of {counted(len(records) - len(found), 'answer')}; correct it.")
        return [found[place] for place in range(len(records))]

    return score
