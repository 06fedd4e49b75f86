"""The verb: models, held-out pairs and suites in; tables, figures, JSON and CSV out, all in one directory."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rapo_jax.borders import whole_file, write_json
from rapo_jax.config.tree import Config
from rapo_jax.distributed import is_first, on_first
from rapo_jax.errors import UserError
from rapo_jax.evaluate.figures import DRAWN, draw, figure_name
from rapo_jax.evaluate.goals.asking import GoalRequest, grid_between
from rapo_jax.evaluate.goals.verb import GoalSuite, open_suite, run_suite
from rapo_jax.evaluate.held_out import held_out_pairs
from rapo_jax.evaluate.likelihoods import Likelihoods, Tokens, ask, common_rows, labels_of, likelihoods, tokenize
from rapo_jax.evaluate.result import Result, as_csv, table
from rapo_jax.evaluate.suites import likelihood, preference, unlearning
from rapo_jax.locks import claimed
from rapo_jax.messages import Record
from rapo_jax.opened import ClosedModel, ModelDirectory
from rapo_jax.parallel import make_mesh
from rapo_jax.runs.agreement import require_same_configuration, require_same_model
from rapo_jax.score.by_model import refuse_strangers
from rapo_jax.space import on_disk

DEFAULT_BETA = 0.1  # where the configuration's objective has none


def evaluate(
    config: Config,
    models: Sequence[ClosedModel],
    *,
    reference: ClosedModel | None,
    suites: Sequence[str],
    goals: Sequence[float],
    most: int | None,
    out: Path,
    request: GoalRequest | None = None,
) -> list[Result]:
    """Evaluates models on `most` of the configuration's held-out pairs, or of data.path where none are held out; with a
    `request`, also their answers at goals.

    `goals` are those of the grid; () takes `grid_of`. `reference` is needed by the suite "preference" alone. Raises
    Interrupted (what was computed is kept in `out`), and UserError.
    """
    require_same_configuration(config)
    if request and "frontier" in suites:
        request = with_reference(request, models, reference)
    bases = request.bases if request else ()
    if len({place_of(model) for model in (*models, *bases)}) < len(models) + len(bases):
        raise UserError("--model names one model twice; name every model once.")
    labels = labels_of([model.name for model in (*models, *bases)])
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; it must be a directory.")
    answered = open_answered(models, labels, request, config, reference=reference, most=most)
    known = [name for name in suites if name in (*SUITE, "preference")]
    with ExitStack() as stack:
        read = (
            open_read(models, labels, config, reference=reference, suites=known, goals=goals, most=most)
            if known
            else None
        )
        on_first(lambda: stack.enter_context(claimed_directory(out)))
        results = results_of(read, config, suites=known, out=out) if read else []
        if answered:
            start = reference_of(answered.request.bases, reference) if "frontier" in suites else None
            results += run_suite(answered, config, suites=suites, reference=start, out=out)
        if is_first():
            write(results, out)
    return results


def with_reference(request: GoalRequest, models: Sequence[ClosedModel], reference: ClosedModel | None) -> GoalRequest:
    """The request with the reference among the models that answer as they are. Raises UserError for what gives no distance."""
    if reference is None:
        raise UserError(
            "the suite frontier measures distances from the model that training started from: name it with --reference or model.path, "
            "or leave the suite out with --suite."
        )
    if request.drawing.temperature != 1 or request.drawing.top_p != 1:
        raise UserError(
            f"the suite frontier estimates the KL of models from their own answers, and --temperature {request.drawing.temperature:g} --top-p "
            f"{request.drawing.top_p:g} draws others; give --temperature 1 --top-p 1."
        )
    for model in (*models, *request.bases):
        if place_of(model) != place_of(reference):
            refuse_strangers(model, reference)
        elif model in models:
            raise UserError(
                f"the suite frontier needs models other than their reference {reference.name}; leave it out."
            )
    known = reference_of(request.bases, reference) is not None
    return request if known else replace(request, bases=(*request.bases, reference))


def reference_of(bases: Sequence[ClosedModel], reference: ClosedModel | None) -> ClosedModel | None:
    """The reference as it stands among these."""
    return next((base for base in bases if reference and place_of(base) == place_of(reference)), None)


def open_answered(
    models: Sequence[ClosedModel],
    labels: Sequence[str],
    request: GoalRequest | None,
    config: Config,
    *,
    reference: ClosedModel | None,
    most: int | None,
) -> GoalSuite | None:
    """The suite `goals`, if it is asked for."""
    if request is None:
        return None
    for model in (*models, *request.bases):
        if isinstance(model, ModelDirectory) and request.drawing.server is None:
            require_same_model(model.directory)
    name = reference.name if reference else None
    mesh = partial(make_mesh, **vars(config.mesh))
    return open_suite(models, labels, request, config, reference=name, most=most, mesh=mesh)


@dataclass(frozen=True)
class Read:
    """What the suites of likelihoods read: the models' tokens, the pairs, the grid, and who is compared with the reference."""

    records: list[Record]
    tokens: list[Tokens]
    grid: tuple[float, ...]
    policies: list[ClosedModel]
    reference: ClosedModel | None


def open_read(
    models: Sequence[ClosedModel],
    labels: Sequence[str],
    config: Config,
    *,
    reference: ClosedModel | None,
    suites: Sequence[str],
    goals: Sequence[float],
    most: int | None,
) -> Read:
    policies = policies_of(models, reference) if "preference" in suites else []
    every = [*models, *([reference] if reference is not None and policies else [])]
    for model in every:
        if isinstance(model, ModelDirectory):  # the checkpoint of a run is read by all processes together
            require_same_model(model.directory)
    asked = [ask(model, config, label=label) for model, label in zip(models, labels, strict=False)]
    records = held_out_pairs(config, most=most)
    grid = tuple(goals) or grid_of(config)
    return Read(records, [tokenize(each, records, config, grid=grid) for each in asked], grid, policies, reference)


def results_of(read: Read, config: Config, *, suites: Sequence[str], out: Path) -> list[Result]:
    """The suites of likelihoods."""
    rows = common_rows(read.tokens, config, num_pairs=len(read.records))
    found = partial(likelihoods, records=read.records, config=config, grid=read.grid, rows=rows, out=out)
    tables = [found(each, each.asked.model) for each in read.tokens]
    results = [SUITE[name](tables) for name in suites if name in SUITE]
    if read.policies and read.reference is not None:
        results.append(preference_of(tables, read.tokens, read.policies, read.reference, config=config, found=found))
    return results


# The suites that need no reference.
SUITE: dict[str, Callable[[Sequence[Likelihoods]], Result]] = {"likelihood": likelihood, "unlearning": unlearning}


def place_of(model: ClosedModel) -> str:
    """Where a model is, however it was spelled."""
    return str((model.directory if isinstance(model, ModelDirectory) else Path(model.name)).resolve())


def policies_of(models: Sequence[ClosedModel], reference: ClosedModel | None) -> list[ClosedModel]:
    """The models other than the reference. Raises UserError where there is no reference, where it is the only model, and where a
    model was not trained from it."""
    if reference is None:
        raise UserError(
            "the suite preference compares with the model that training started from: name it with --reference or model.path, "
            "or leave the suite out with --suite."
        )
    policies = [model for model in models if place_of(model) != place_of(reference)]
    if not policies:
        raise UserError(
            f"the suite preference compares models with {reference.name}, and no other is named; leave the suite out with --suite, "
            "or name a further --model."
        )
    for policy in policies:
        if not policy.spec.scored:
            refuse_strangers(policy, reference)
    return policies


def preference_of(
    tables: Sequence[Likelihoods],
    tokens: Sequence[Tokens],
    policies: Sequence[ClosedModel],
    reference: ClosedModel,
    *,
    config: Config,
    found: Callable[[Tokens, ClosedModel], Likelihoods],
) -> Result:
    """The suite preference: the reference reads the texts of each policy."""
    ours = [(each, tokens[n]) for n, each in enumerate(tables) if any(tokens[n].asked.model is p for p in policies)]
    references = [found(texts, reference) for _, texts in ours]
    beta = config.objective.options.get("beta")
    return preference(
        [each for each, _ in ours],
        references,
        beta=DEFAULT_BETA if beta is None else beta,
        reference=reference.name,
    )


def claimed_directory(out: Path):
    """The output directory, made, and kept from other processes."""
    with on_disk(out):
        out.mkdir(parents=True, exist_ok=True)
    return claimed(out, said=f"--out={out}")


def grid_of(config: Config) -> tuple[float, ...]:
    """At most eleven goals over the configuration's scale."""
    return grid_between(config.relabel.goal_min, config.relabel.goal_max)


def write(results: Sequence[Result], out: Path) -> None:
    """results.json, results.csv, results.txt and one figure a suite, in place of those of an earlier command."""
    for suite in DRAWN:
        (out / figure_name(suite)).unlink(missing_ok=True)
    write_json(out / "results.json", {result.suite: result.tree() for result in results})
    for name, text in (("results.csv", as_csv(results)), ("results.txt", text_of(results))):
        with whole_file(out / name) as path:
            path.write_text(text, encoding="utf-8")
    for result in results:
        with whole_file(out / figure_name(result.suite)) as path:
            draw(result, path)


def text_of(results: Sequence[Result], *, details: bool = True) -> str:
    return "\n\n".join(table(result, details=details) for result in results) + "\n"
