"""What scorers say of answers, each prompt with its answer once; and the map from a scorer's scale to that of the goals.

OUT/scores/SCORER-HASH.jsonl keeps what was scored. What is new is scored in one go, by the scorers of `rapo score`, each of
which keeps what it has as it goes.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from jax.sharding import Mesh

from rapo_jax.borders import json_line, read_json_lines, write_json_lines
from rapo_jax.config.tree import Config
from rapo_jax.data.scaling import read_scales
from rapo_jax.distributed import each_process, on_first, say
from rapo_jax.errors import UserError, counted, nearest
from rapo_jax.evaluate.goals.asking import GoalRequest, Prompted
from rapo_jax.evaluate.goals.sampling import key_of
from rapo_jax.messages import Record
from rapo_jax.relabel import Scale
from rapo_jax.score.by_model import ImplicitReward, RewardModel
from rapo_jax.score.outside import OutsideScorer
from rapo_jax.score.responses import kept_for_us
from rapo_jax.score.scorer import RowScores, Scorer, ScoreRequest, without_secrets
from rapo_jax.score.scorers import PREFIXES, open_scorer
from rapo_jax.space import on_disk

BY_MODEL = ("reward_model:", "implicit:")
KNOWN = ["judge", "reward_model:DIR", "implicit:DIR", "python:MODULE:FUNCTION", "command:PROGRAM"]
AT_ONCE = 8  # answers of one prompt in one record
JUDGES_SCALE = (1.0, 10.0)
OF_GOALS = "goals"


@dataclass(frozen=True)
class Judge:
    """An open scorer, what it is called, and how its rewards become scores on the scale of goals: a map for the ends of a
    scale, or None where that is not known."""

    name: str
    scorer: Scorer
    scale: Callable[[float, float], Scale] | None


@dataclass(frozen=True)
class Score:
    """Of one answer: the scorer's reward, and its other attributes."""

    reward: float
    attributes: dict[str, float]


def open_judges(
    request: GoalRequest, config: Config, *, reference: str | None, mesh: Callable[[], Mesh]
) -> list[Judge]:
    """The scorers of --scorer, one or two. Raises UserError for one that cannot be had."""
    if not request.scorers:
        raise UserError(f"the suite goals needs a scorer: add --scorer with one of {', '.join(KNOWN)}.")
    if len(request.scorers) > 2 or len(set(request.scorers)) < len(request.scorers):
        raise UserError("--scorer is given for one scorer, or for two different ones that are compared.")
    if len(request.scales) > len(request.scorers):
        raise UserError("--scale is given more often than --scorer; the n-th is the scale of the n-th scorer.")
    if request.judge is not None and "judge" not in request.scorers:
        raise UserError("options that begin with --judge are of --scorer judge; add it, or leave them out.")
    if request.judge is not None and request.judge.compare:
        raise UserError(
            "--judge-compare says which of the answers to one prompt are better, and no score that could be compared with a goal; "
            "leave it out."
        )
    scales = [*request.scales, *[""] * len(request.scorers)]
    judges = []
    for name, scale in zip(request.scorers, scales, strict=False):
        wanted = replace(
            score_request(name, reference),
            judge=request.judge if name == "judge" else None,
            patience=request.patience if name.startswith("command:") else None,
        )
        scorer = open_scorer(config, wanted, mesh)
        judges.append(Judge(without_secrets(name), scorer, map_of(scale, name)))
    return judges


def score_request(name: str, reference: str | None) -> ScoreRequest:
    """A scorer as it is written in one word. Raises UserError for a name that is none."""
    kind, colon, model = name.partition(":")
    if f"{kind}:" in BY_MODEL and colon and model:
        return ScoreRequest(kind, model, reference if kind == "implicit" else None)
    if f"{kind}:" in BY_MODEL:
        raise UserError(f"--scorer {name} needs its model: {kind}:DIR.")
    if name != "judge" and not name.startswith(tuple(PREFIXES)):
        raise UserError(f"--scorer {without_secrets(name)} is unknown; {nearest(name, KNOWN)}")
    return ScoreRequest(name)


def map_of(scale: str, scorer: str) -> Callable[[float, float], Scale] | None:
    """How a scorer's rewards become scores, for the ends of a model's scale. Raises UserError for what is no scale."""
    if scale == OF_GOALS:
        return lambda low, high: Scale(low, high, low, high, clip=False)
    if not scale and scorer != "judge":
        return None
    ends = JUDGES_SCALE if not scale else ends_of(scale)
    if ends is not None:
        return lambda low, high: Scale(*ends, low, high, clip=False)
    recorded = read_scales(scale).reward
    if recorded is None:
        raise UserError(f"--scale {scale} has no map of the reward; give another scale.json, LOW,HIGH or {OF_GOALS}.")

    def mapped(low: float, high: float) -> Scale:
        if (recorded.goal_min, recorded.goal_max) != (low, high):
            raise UserError(
                f"--scale {scale} maps onto {recorded.goal_min:g} to {recorded.goal_max:g}, and a model's goals go from {low:g} to "
                f"{high:g}; give the scale.json that it was trained with."
            )
        return recorded

    return mapped


def ends_of(scale: str) -> tuple[float, float] | None:
    """The two numbers of LOW,HIGH; None for the name of a file."""
    try:
        low, high = map(float, scale.split(","))
    except ValueError:
        return None
    if not low < high < float("inf"):
        raise UserError(f"--scale {scale}: the first number must be below the second.")
    return low, high


def scores_of(judge: Judge, answers: Iterable[tuple[Prompted, str]], *, out: Path) -> dict[tuple[Prompted, str], Score]:
    """The score of every (prompt, answer). Raises Interrupted or KeyboardInterrupt, with what was scored in `out`, and
    UserError."""
    wanted = {each: key_of(*each) for each in dict.fromkeys(answers)}
    path = out / "scores" / f"{file_name(judge)}.jsonl"
    known = each_process(on_first(lambda: kept_scores(path)))[0]
    new = [each for each, key in wanted.items() if key not in known]
    say(f"{judge.name}: {len(wanted) - len(new):,} of {counted(len(wanted), 'different answer')} scored before")
    if new:
        known |= score_new(judge, new, path, known)
    return {each: Score(known[key][0], known[key][1]) for each, key in wanted.items()}


Kept = dict[str, tuple[float, dict[str, float]]]


def file_name(judge: Judge) -> str:
    """Readable, and of no other scorer."""
    told = json.dumps([judge.scorer.origin, weights_of(judge.scorer)], sort_keys=True, default=str)
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", judge.name).strip("-.")[-40:]
    return f"{readable}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"


def weights_of(scorer: Scorer) -> list[dict]:
    """What scores depend on besides their origin: the weights of models, the file of a function."""
    match scorer:
        case RewardModel():
            return [dict(scorer.model.identity()), limits(scorer.config)]
        case ImplicitReward():
            return [dict(scorer.policy.identity()), dict(scorer.reference.identity()), limits(scorer.config)]
        case OutsideScorer():
            return [scorer.identity]
    return []


def limits(config: Config) -> dict[str, str | int]:
    """How texts are read by a model that scores."""
    data = config.data
    told = {"template": str(data.chat_template), "options": str(data.template_options), "date": data.date}
    return told | {"length": data.max_length, "prompt": data.max_prompt_length, "dtype": config.model.dtype}


def kept_scores(path: Path) -> Kept:
    if not path.exists():
        return {}
    rows = (row for _, row in read_json_lines(path, remedy=f"remove {path}, to have it made again"))
    return {row["answer"]: (float(row["reward"]), row["attributes"]) for row in rows}


def score_new(judge: Judge, new: Sequence[tuple[Prompted, str]], path: Path, known: Kept) -> Kept:
    """Scores answers and adds them to the file."""
    texts: dict[Prompted, list[str]] = {}
    for prompt, text in new:
        texts.setdefault(prompt, []).append(text)
    chunks = [(p, each[at : at + AT_ONCE]) for p, each in texts.items() for at in range(0, len(each), AT_ONCE)]
    records = [
        Record(number, prompt.messages, tuple(some), None, tools=prompt.tools)
        for number, (prompt, some) in enumerate(chunks, 1)
    ]
    name = hashlib.sha256(json_line([key_of(*each) for each in new]).encode()).hexdigest()[:12]
    kept = path.with_name(f"{path.stem}-{name}.unfinished")
    with ExitStack() as stack:
        on_first(lambda: stack.enter_context(kept_for_us(kept, kind=judge.scorer.kind)))
        found = judge.scorer.score(records, kept=kept)
        scored = {
            key_of(prompt, text): (reward, attributes)
            for (prompt, some), scores in zip(chunks, found, strict=True)
            for text, reward, attributes in zip(some, scores.rewards, attributes_of(scores), strict=True)
        }
        on_first(lambda: write_kept(path, known | scored))
        on_first(lambda: shutil.rmtree(kept))
    return scored


def attributes_of(scores: RowScores) -> Sequence[dict[str, float]]:
    return scores.attributes if scores.attributes is not None else [{} for _ in scores.rewards]


def write_kept(path: Path, scored: Kept) -> None:
    with on_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    rows = ({"answer": key, "reward": reward, "attributes": named} for key, (reward, named) in scored.items())
    write_json_lines(path, rows)
