"""`rapo plan`: assesses one target, walks the slices of a kind up to the first that fits, or searches for the fastest setting."""

import sys
from dataclasses import dataclass
from math import prod

from rapo_jax.config.tree import Config
from rapo_jax.errors import UserError
from rapo_jax.models.directory import model_directory
from rapo_jax.models.spec import Spec
from rapo_jax.plan.assess import Question, assess
from rapo_jax.plan.fastest import MOST_COMPILES, search_fastest
from rapo_jax.plan.fastest_report import fastest_json, fastest_screen
from rapo_jax.plan.lengths import Lengths, read_lengths
from rapo_jax.plan.report import as_json, line, screen
from rapo_jax.plan.suggest import nearest_that_fits
from rapo_jax.plan.targets import SLICES, here, slice_target, split_topology
from rapo_jax.runs.setup import spec_of

DOES_NOT_FIT, INTERRUPTED = 1, 130


@dataclass(frozen=True)
class PlanReport:
    """The report as text and as JSON, and the exit code."""

    text: str
    tree: dict
    code: int
    interrupted: bool = False  # a compiler may still be at work in another thread, which cannot be stopped


def plan_target(config: Config, *, name: str, topology: str | None = None, devices: str | None = None) -> PlanReport:
    """Assesses one target and, if the step does not fit, the nearest change that makes it fit."""
    target = slice_target(*split_topology(topology)) if topology else here(devices)
    assessment = assess(Question(config, *read_run(config), target))
    text = screen(assessment, name=name)
    if assessment.fits:
        return PlanReport(text, as_json(assessment), 0)
    nearest = nearest_that_fits(assessment, progress=progress)
    if nearest is None:
        return PlanReport(text + "\n\nno change that was tried makes it fit.", as_json(assessment), DOES_NOT_FIT)
    said = list(nearest.question.changes)
    if nearest.question.target != target:
        said.append(f"--topology {nearest.question.target.name}")
    text += f"\n\nthe nearest change that fits: {' '.join(said)}\n\n{screen(nearest, name=name)}"
    return PlanReport(text, as_json(assessment, nearest=nearest), DOES_NOT_FIT)


def smallest(config: Config, *, kind: str) -> PlanReport:
    """Walks the slices of a kind, smallest first, up to the first on which the configuration fits unchanged."""
    if kind not in SLICES:
        raise UserError(f"--smallest {kind} is unknown; known kinds: {', '.join(SLICES)}.")
    run, lines, trees, first = read_run(config), [], [], None
    for slice_name in SLICES[kind]:
        target = slice_target(kind, slice_name)
        if not divides(config, len(target.devices)):
            continue
        progress(f"{target.name} ...")
        assessment = assess(Question(config, *run, target), temporaries=0.0)
        lines.append(line(assessment))
        trees.append(as_json(assessment))
        if assessment.fits:
            first = target.name
            break
    text = "\n".join([f"{config.model.path} on {kind}", *lines])
    text += f"\nthe smallest that fits: {first}" if first else f"\nfits no known slice of {kind}."
    return PlanReport(text, {"smallest": first, "tried": trees}, 0 if first else DOES_NOT_FIT)


def fastest(
    config: Config, *, name: str, topology: str | None, devices: str | None, most_compiles: int = MOST_COMPILES
) -> PlanReport:
    """Searches for the fastest setting on one target."""
    target = slice_target(*split_topology(topology)) if topology else here(devices)
    search = search_fastest(Question(config, *read_run(config), target), most_compiles=most_compiles, progress=progress)
    code = INTERRUPTED if search.interrupted else DOES_NOT_FIT if search.best is None else 0
    return PlanReport(fastest_screen(search, name=name), fastest_json(search), code, search.interrupted)


def read_run(config: Config) -> tuple[Spec, Lengths]:
    """The model's shape and the lengths of the data, without weights."""
    model_dir = model_directory(config.model.path, weights=False)
    return spec_of(config, model_dir), read_lengths(config, model_dir)


def divides(config: Config, num_devices: int) -> bool:
    fixed = prod(size for size in vars(config.mesh).values() if size != -1)
    return num_devices % fixed == 0


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
