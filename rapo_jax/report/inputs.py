"""What the user named: run directories, results of `rapo evaluate`, goal sweeps, answer files, verdicts of benchmarks' judges. Each is
told by what it holds."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rapo_jax.borders import path_of, read_json, read_json_lines, read_object
from rapo_jax.errors import UserError, counted
from rapo_jax.evaluate.benchmarks.registry import judge_of, read_verdicts
from rapo_jax.evaluate.goals.verb import ANSWERS
from rapo_jax.evaluate.result import Result, result_of
from rapo_jax.report.answers import REMEDY, Answer, AnswerFile, by_model, is_finite_number, read_answers
from rapo_jax.report.run_directory import RunRecord, read_run

TAKEN = (
    "a page shows run directories, directories of rapo evaluate (results.json), goal sweeps (sweep.json), answer files of rapo "
    "generate and verdicts of the judges of AlpacaEval, MT-Bench and Arena-Hard"
)

ENDINGS = re.compile(
    r"(\.(jsonl|ndjson|json|txt))?(\.(gz|bz2|xz|zst))?$"
)  # of answer files; a dot in a name is no ending


@dataclass(frozen=True)
class Evaluated:
    """The results in one directory of `rapo evaluate`."""

    name: str
    path: Path
    results: tuple[Result, ...]


@dataclass(frozen=True)
class SweepLine:
    """One sweep of a model: mean judged scores by goal; `low` and `high` bound them, or are ()."""

    model: str
    means: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    rank_correlation: float | None


@dataclass(frozen=True)
class SweepRecord:
    """A goal sweep. `num_prompts` is None where its file does not say."""

    name: str
    path: Path
    goals: tuple[float, ...]
    num_prompts: int | None
    lines: tuple[SweepLine, ...]


@dataclass(frozen=True)
class Inputs:
    """All that a page is made of, in the order in which it was named."""

    runs: tuple[RunRecord, ...] = ()
    evaluations: tuple[Evaluated, ...] = ()
    sweeps: tuple[SweepRecord, ...] = ()
    answers: tuple[Answer, ...] = ()


def read_inputs(words: Sequence[str]) -> Inputs:
    """Reads every PATH or NAME=PATH. Raises UserError for what a page cannot show."""
    named = [split(word) for word in words]
    paths = [path_of(path, said=path) for _, path in named]
    twice = [str(path) for n, path in enumerate(paths) if path.resolve() in {each.resolve() for each in paths[:n]}]
    if twice:
        raise UserError(f"{twice[0]} is named twice; name everything once.")
    found = [(kind_of(path), path) for path in paths]
    own = own_names(found)
    names = [given or each for (given, _), each in zip(named, own, strict=True)]
    runs = [name for name, (kind, _) in zip(names, found, strict=True) if kind == "run"]
    if same := next((name for name in runs if runs.count(name) > 1), None):
        raise UserError(f"{counted(runs.count(same), 'run')} are named {same}; give each its own NAME=RUN_DIR.")
    inputs, files = Inputs(), []
    for (given, _), name, (kind, path) in zip(named, names, found, strict=True):
        if kind == "run":
            inputs = replace(inputs, runs=(*inputs.runs, read_run(path, name)))
        elif kind == "evaluation":
            inputs = replace(inputs, evaluations=(*inputs.evaluations, read_evaluation(path, name)))
            if (answers := answers_beside(path, inputs.evaluations[-1])) is not None:
                files.append(AnswerFile(given, name, read_answers(answers, name)))
        elif kind == "verdicts":
            inputs = replace(inputs, evaluations=(*inputs.evaluations, read_judged(path, name)))
        elif kind == "sweep":
            inputs = replace(inputs, sweeps=(*inputs.sweeps, read_sweep(path, name)))
        else:
            files.append(AnswerFile(given, name, read_answers(path, name)))
    return replace(inputs, answers=tuple(by_model(files)))


def own_names(found: Sequence[tuple[str, Path]]) -> list[str]:
    """What each (kind, path) is called: the shortest end of its path that tells it from the others of its kind."""
    names = [""] * len(found)
    for kind in {kind for kind, _ in found}:
        places = [place for place, (other, _) in enumerate(found) if other == kind]
        said = [said_of(kind, found[place][1]) for place in places]
        # Of files that differ in their endings alone, these are said too.
        said = [
            text if said.count(text) == 1 else str(found[n][1].resolve()) for n, text in zip(places, said, strict=True)
        ]
        for place, name in zip(places, short_names(said), strict=True):
            names[place] = name
    return names


def said_of(kind: str, path: Path) -> str:
    """A path without what says only its kind."""
    path = path.resolve()
    if kind in ("answers", "verdicts") and path.name != "annotations.json":
        return str(path.with_name(ENDINGS.sub("", path.name) or path.name))
    return str(path.parent if path.name in ("results.json", "sweep.json", "annotations.json") else path)


def split(word: str) -> tuple[str, str]:
    """(name, path) of NAME=PATH, ("", path) of a PATH, which may hold an equals sign if it exists."""
    name, equals, path = word.partition("=")
    if equals and name and path and "/" not in name and not path_of(word, said=word).exists():
        return name, path
    return "", word


def kind_of(path: Path) -> str:
    """run, evaluation, verdicts, sweep or answers. Raises UserError for anything else."""
    if not path.exists():
        raise UserError(f"{path} does not exist; {TAKEN}.")
    if path.is_file():
        if path.suffix != ".json":
            return "verdicts" if judge_of(first_row(path)) else "answers"
        tree = read_json(path)
        if isinstance(tree, list) and tree and judge_of(tree[0]):
            return "verdicts"
        tree = tree if isinstance(tree, dict) else {}
        if "goals" in tree and "models" in tree:
            return "sweep"
        if tree and all(isinstance(each, dict) and "measures" in each for each in tree.values()):
            return "evaluation"
        raise UserError(f"{path} is neither a goal sweep nor the results of rapo evaluate; {TAKEN}.")
    if (path / "results.json").is_file():
        return "evaluation"
    if (path / "config.yaml").is_file():
        return "run"
    if (path / "sweep.json").is_file():
        return "sweep"
    raise UserError(f"{path} holds no config.yaml, no results.json and no sweep.json; {TAKEN}.")


def short_names(paths: Sequence[str]) -> list[str]:
    """The shortest ends of paths that tell them apart.

    >>> short_names(["runs/a/dpo", "runs/b/dpo"]), short_names(["/x/ra", "/x/dpo"])
    (['a/dpo', 'b/dpo'], ['ra', 'dpo'])
    """
    parts = [[each for each in re.split(r"[/\\]", path) if each] or [path] for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def read_evaluation(path: Path, name: str) -> Evaluated:
    """results.json, or the directory that holds it."""
    file = path if path.is_file() else path / "results.json"
    tree, remedy = read_object(file), "evaluate again, or leave it out"
    if not tree:
        raise UserError(f"{file} holds no suites; {remedy}.")
    said = f"{file} is not what rapo evaluate writes"
    results = tuple(result_of(each, said=f"{said}: {suite}", remedy=remedy) for suite, each in tree.items())
    return Evaluated(name, path, results)


def answers_beside(path: Path, evaluated: Evaluated) -> Path | None:
    """The answers of the suite `goals`, if these results are of one."""
    answers = (path.parent if path.is_file() else path) / ANSWERS
    return answers if answers.is_file() and any(result.suite == "goals" for result in evaluated.results) else None


def first_row(path: Path) -> Any:
    """The first row of a file of JSON lines; None where there is none."""
    return next((row for _, row in read_json_lines(path, remedy=REMEDY)), None)


def read_judged(path: Path, name: str) -> Evaluated:
    """The verdicts of a benchmark's judge."""
    rows = read_json(path) if path.suffix == ".json" else [first_row(path)]
    benchmark = judge_of(rows[0])
    assert benchmark is not None  # the file's kind says so
    return Evaluated(name, path, (read_verdicts(path, benchmark),))


def read_sweep(path: Path, name: str) -> SweepRecord:
    """sweep.json, or the directory that holds it."""
    file = path if path.is_file() else path / "sweep.json"
    tree = read_object(file)
    try:
        goals = numbers(tree["goals"])
        lines = [sweep_line(model, run) for model, runs in tree["models"].items() for run in runs]
        wrong = [
            line.model
            for line in lines
            if not all(len(x) in (0, len(goals)) for x in (line.means, line.low, line.high))
        ]
        if wrong or not goals or not lines or not all(line.means for line in lines):
            raise TypeError(f"{len(goals)} goals, and another number of scores")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is no goal sweep ({error!r:.80}); sweep again, or leave it out.") from error
    count = tree.get("num_prompts")
    return SweepRecord(name, path, goals, count if isinstance(count, int) else None, tuple(lines))


def sweep_line(model: str, run: dict[str, Any]) -> SweepLine:
    low, high = numbers(run.get("low_by_goal", [])), numbers(run.get("high_by_goal", []))
    rho: Any = run.get("rank_correlation")
    means = numbers(run["mean_score_by_goal"])
    return SweepLine(model, means, low, high, float(rho) if is_finite_number(rho) else None)


def numbers(values: Any) -> tuple[float, ...]:
    """Finite numbers. Raises TypeError for anything else."""
    if not (isinstance(values, list) and all(is_finite_number(each) for each in values)):
        raise TypeError("a list of numbers is missing")
    return tuple(float(each) for each in values)
