"""The scorers that `rapo score --scorer` knows, by name. One more is a file that implements the protocol, and an entry here."""

from collections.abc import Mapping

from rapo_jax.config.tree import Config
from rapo_jax.errors import UserError, nearest
from rapo_jax.score.by_model import open_by_kind, open_implicit, open_reward_model
from rapo_jax.score.function import open_function
from rapo_jax.score.program import open_program
from rapo_jax.score.scorer import MakeMesh, Opener, Scorer, ScoreRequest


def open_judge(config: Config, request: ScoreRequest, mesh: MakeMesh) -> Scorer:
    """--scorer=judge, which needs a package that nothing else does."""
    try:
        from rapo_jax.score.judge import asking
    except ModuleNotFoundError as error:
        if error.name != "httpx2":
            raise
        raise UserError(
            "--scorer=judge needs the package httpx2, which is not installed: pip install 'rapo_jax[judge]'."
        ) from error
    return asking.open_judge(config, request, mesh)


SCORERS: Mapping[str, Opener] = {
    "reward_model": open_reward_model,
    "implicit": open_implicit,
    "judge": open_judge,
}
PREFIXES: Mapping[str, Opener] = {"python:": open_function, "command:": open_program}
NEED_MODEL = ("", "reward_model", "implicit")


def open_scorer(config: Config, request: ScoreRequest, mesh: MakeMesh) -> Scorer:
    """The scorer that a request asks for. Raises UserError for a name that is none, and where it lacks what it needs."""
    name = request.scorer
    if request.judge and name != "judge":
        raise UserError("options that begin with --judge are of --scorer=judge; add it, or leave them out.")
    if request.patience is not None and not name.startswith("command:"):
        raise UserError("--scorer-timeout is of --scorer=command:PROGRAM; add it, or leave the option out.")
    for prefix, opener in PREFIXES.items():
        if name.startswith(prefix):
            return opener(config, request, mesh)
    if name and name not in SCORERS:
        raise UserError(
            f"--scorer={name} is unknown; {nearest(name, [*SCORERS, 'python:MODULE:FUNCTION', 'command:PROGRAM'])}"
        )
    if name in NEED_MODEL and not request.model:
        others = "--scorer" if not name else "another --scorer"
        raise UserError(f"--model is not given: add --model DIR (a reward model or a trained policy), or {others}.")
    return (SCORERS[name] if name else open_by_kind)(config, request, mesh)
