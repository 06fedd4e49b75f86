"""A Python function as a scorer: `--scorer python:package.module:function`.

def function(prompts, responses):
    '''prompts[i] is a list of {"role", "content"}, responses[i] a list of texts.'''
    return rewards                  # rewards[i][j] is a number
    return rewards, attributes      # attributes[i][j] is {name: number}
"""

import hashlib
import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rapo_jax.config.tree import Config
from rapo_jax.data.values import BadRow
from rapo_jax.errors import UserError, first_line, near, shown
from rapo_jax.messages import Record
from rapo_jax.score.outside import Found, OutsideScorer, texts_of
from rapo_jax.score.scorer import MakeMesh, RowScores, ScoreRequest, plain, refuse_options, row_scores

AT_ONCE = 8  # rows of one call, which are lost where it is interrupted


def open_function(config: Config, request: ScoreRequest, mesh: MakeMesh) -> OutsideScorer:
    """--scorer=python:MODULE:FUNCTION. Raises UserError where there is no such function."""
    refuse_options(request, of=())
    name = request.scorer
    where, _, attribute = name.removeprefix("python:").partition(":")
    if not where or not attribute:
        raise UserError(f"--scorer={name} must be python:package.module:function.")
    module = imported(where, said=f"--scorer={name}")
    function = getattr(module, attribute, None)
    if not callable(function):
        close = near(attribute, [each for each in vars(module) if not each.startswith("_")])
        fact = "is no function" if hasattr(module, attribute) else f"is not in {module.__file__ or where}"
        raise UserError(f"--scorer={name}: {attribute} {fact}" + (f"; did you mean {close!r}?" if close else "."))
    source = Path(module.__file__ or "")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12] if source.is_file() else ""
    identity = {"--scorer": name, "the file of the function": digest}
    return OutsideScorer({"kind": "function", "function": f"{where}:{attribute}"}, identity, asking(function, name))


def imported(name: str, *, said: str) -> ModuleType:
    """A module, also one of the directory that the command runs in. Raises UserError for whatever importing it raises."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise UserError(
            f"{said}: the module {name} cannot be imported ({described(error)}); correct it, or the name."
        ) from error


def asking(function: Callable[..., Any], name: str) -> Callable[[Sequence[Record]], Found]:
    """The calls of a function, a number of rows at a time."""

    def ask(records: Sequence[Record]) -> Found:
        for start in range(0, len(records), AT_ONCE):
            some = records[start : start + AT_ONCE]
            for place, scores in enumerate(called(function, some, said=f"--scorer={name}")):
                yield start + place, scores

    return ask


def called(function: Callable[..., Any], records: Sequence[Record], *, said: str) -> list[RowScores]:
    """The scores that one call gives. Raises UserError for what it raises, and for what are no scores of these rows."""
    prompts, responses = zip(*map(texts_of, records), strict=True)
    rows = f"rows {records[0].row} to {records[-1].row}"
    try:
        given = plain(function(list(prompts), list(responses)))
    except Exception as error:
        raise UserError(f"{said} failed at {rows}: {described(error)}.") from error
    rewards, attributes = given if isinstance(given, list) and looks_like_both(given, len(records)) else (given, None)
    for what, lists in (("rewards", rewards), ("attributes", attributes)):
        if (lists is not None or what == "rewards") and (not isinstance(lists, list) or len(lists) != len(records)):
            raise UserError(
                f"{said} gave the {what} {shown(lists)} for {len(records):,} rows ({rows}); it must give one list a row."
            )
    scores = []
    for at, record in enumerate(records):
        line = {"rewards": rewards[at]} | ({"attributes": attributes[at]} if attributes is not None else {})
        try:
            scores.append(row_scores(line, len(record.responses)))
        except BadRow as bad:
            raise UserError(
                f"{said}: of row {record.row} {bad}; it must be a finite number for each response."
            ) from bad
    return scores


def looks_like_both(given: list[Any], num_rows: int) -> bool:
    """Whether a result is (rewards, attributes) and not rewards alone."""
    if len(given) != 2 or not all(isinstance(each, list) and len(each) == num_rows for each in given):
        return False
    return all(isinstance(row, list) and all(isinstance(each, dict) for each in row) for row in given[1])


def described(error: Exception) -> str:
    """An exception in a sentence: its type, what it says, and the last line of code that it came through."""
    frames = [each for each in traceback.extract_tb(error.__traceback__) if not each.filename.startswith("<")]
    place = f" at {frames[-1].filename} line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {first_line(error)}{place}"
