"""Rewards for every response of a source, written as a file of scores for data.rewards, by any scorer.

Partial results are kept beside the output until all are complete, so that an interrupted command can go on.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from jax.sharding import Mesh

from rapo_jax.borders import read_json_lines, read_object, write_json, write_json_lines
from rapo_jax.config.tree import Config
from rapo_jax.distributed import each_process, is_first, on_first
from rapo_jax.errors import UserError
from rapo_jax.locks import IN_USE, claimed
from rapo_jax.messages import Record
from rapo_jax.parallel import make_mesh
from rapo_jax.runs.agreement import require_same_configuration
from rapo_jax.score.groups import read_all
from rapo_jax.score.scorer import Origin, RowScores, Scorer, ScoreRequest
from rapo_jax.score.scorers import open_scorer
from rapo_jax.space import on_disk

OWNER = "owner.json"  # in a directory of partial results: the kind of scorer that they are of
BY_MODELS = ("reward_model", "implicit_reward")


@dataclass(frozen=True)
class SourceScores:
    """The rewards of each record's responses, in their order, and where they come from."""

    rewards: list[tuple[float, ...]]
    origin: Origin


def score_source(config: Config, request: ScoreRequest, out: Path) -> SourceScores:
    """Scores data.path as the request asks and writes `out` and, beside it, where the scores come from.

    Raises Interrupted, and UserError for scorers that cannot be had and for data that they cannot score.
    """
    return score_records(config, request, out, read=lambda: read_all(config))


def score_records(
    config: Config, request: ScoreRequest, out: Path, *, read: Callable[[], list[Record]]
) -> SourceScores:
    """As score_source, for records from elsewhere, which are read once the scorer has been found."""
    require_same_configuration(config)
    kept = out.with_name(out.name + ".unfinished")
    on_first(lambda: refuse_output(out, goes_on=kept.exists()))

    def mesh() -> Mesh:
        return make_mesh(**vars(config.mesh))

    scorer = open_scorer(config, request, mesh)
    records = read()
    if each_process(on_first(lambda: out.exists() and kept.exists()))[0]:
        _ = scorer.origin  # of a run: its checkpoint is read by all processes together
    if each_process(on_first(lambda: is_finished(out, kept, scorer, records)))[0]:
        rewards = [tuple(map(float, line["rewards"])) for _, line in read_json_lines(out)] if is_first() else []
        on_first(lambda: shutil.rmtree(kept))
        return SourceScores(rewards, scorer.origin)
    with ExitStack() as stack:
        on_first(lambda: stack.enter_context(kept_for_us(kept, kind=scorer.kind)))
        scores = scorer.score(records, kept=kept)
        if is_first():
            write_scores(out, records, scores, scorer.origin)
            shutil.rmtree(kept)
    return SourceScores([each.rewards for each in scores], scorer.origin)


@contextmanager
def kept_for_us(kept: Path, *, kind: str) -> Iterator[None]:
    """Keeps the directory of partial results from other processes while the block runs; an empty one is removed.

    Raises UserError where the results are of another kind of scorer, which would be removed with ours.
    """
    if kept.exists() and not kept.is_dir():
        raise UserError(f"{kept} is a file; it must be a directory.")
    with on_disk(kept):
        kept.mkdir(parents=True, exist_ok=True)
    try:
        with claimed(kept, said=str(kept)):
            own(kept, kind)
            yield
    finally:
        if kept.exists() and {path.name for path in kept.iterdir()} == {OWNER}:
            (kept / OWNER).unlink()
        if kept.exists() and not any(kept.iterdir()):
            kept.rmdir()


def own(kept: Path, kind: str) -> None:
    """Writes the kind of scorer that a directory of partial results is of. Raises UserError where it is of another."""
    about = kept / OWNER
    remedy = f"Choose another --out, or remove {kept}. Nothing was overwritten."
    if about.exists():
        before = read_object(about, remedy=f"remove {kept} to start anew").get("kind")
        if before != kind:
            raise UserError(
                f"{kept} holds scores of something else: of a scorer of the kind {before}, not {kind}. {remedy}"
            )
        return
    names = {path.name for path in kept.iterdir()} - {IN_USE}
    if not names:
        write_json(about, {"kind": kind})
    elif ("rows.jsonl" in names or "belongs.json" in names) == (kind in BY_MODELS):  # of a version without this record
        raise UserError(f"{kept} holds scores by another kind of scorer, not {kind}. {remedy}")


def refuse_output(out: Path, *, goes_on: bool) -> None:
    """Raises UserError for an output that is not a .jsonl file, or that exists.

    Where a pass resumes, the scores and the file about their origin may exist; see `is_finished`.
    """
    if out.suffix != ".jsonl":
        raise UserError(f"--out={out}: scores are JSON lines; give a name that ends with .jsonl.")
    for path in (out, out.with_suffix(".json")):
        if path.exists() and not goes_on:
            raise UserError(f"{path} exists; nothing was written. Choose another --out.")


def is_finished(out: Path, kept: Path, scorer: Scorer, records: list[Record]) -> bool:
    """Whether the same command wrote its scores and was killed before it removed what it had kept.

    Raises UserError for scores of something else.
    """
    if not (out.exists() and kept.exists()):
        return False
    about = out.with_suffix(".json")
    rows = [(line.get("row"), len(line.get("rewards", ()))) for _, line in read_json_lines(out)]
    if (
        not about.exists()
        or read_object(about) != scorer.origin
        or rows != [(r.row, len(r.responses)) for r in records]
    ):
        raise UserError(f"{out} exists; nothing was written. Choose another --out.")
    return True


def write_scores(out: Path, records: list[Record], scores: list[RowScores], origin: Origin) -> None:
    """Writes one line a row, {"row": n, "rewards": [...]} with what else the scorer gave, and OUT.json with their origin."""
    write_json(out.with_suffix(".json"), origin)
    write_json_lines(out, (each.as_line(record.row) for record, each in zip(records, scores, strict=True)))
