"""`rapo evaluate`."""

import argparse
import copy
import functools
import re
from pathlib import Path
from typing import Any

from rapo_jax.arguments.evaluating import BY_ANSWERS
from rapo_jax.cli.generating import OWN, server_options
from rapo_jax.cli.preparing import keep_compilations, leave_accelerators, require_data
from rapo_jax.cli.scoring import judge_options, options_of_judge
from rapo_jax.errors import UserError
from rapo_jax.interruption import work_begins

DRAWING = ("num_samples", "best_of", "temperature", "top_p", "max_new_tokens", "seed", "batch_size")
OF_GOALS = ("scorer", "scale", "prompts", "base", "any_goal", "scorer_timeout", *DRAWING)
WITHOUT_CONFIG = {"model": {"dtype": "float32"}}  # as `rapo generate`


def evaluate(options: argparse.Namespace) -> int:
    """Says how models answer to goals, with intervals: by the likelihoods of held-out responses, and by their own answers."""
    refuse_goal_options(options)
    config_path, models, overrides = words_of(options)
    if options.engine_model and len(models) + len(options.base) > 1:
        raise UserError(
            "--engine-model is the name of one model, and several are named; leave it out, or evaluate one."
        )
    server = server_options(options)
    by_model = any(scorer.startswith(("reward_model:", "implicit:")) for scorer in options.scorer)
    if server is not None and options.suite == ("goals",) and not by_model:
        leave_accelerators()  # nothing is computed here
    from rapo_jax.config.files import load_config, with_overrides
    from rapo_jax.distributed import say
    from rapo_jax.evaluate.verb import evaluate as evaluate_models
    from rapo_jax.evaluate.verb import text_of
    from rapo_jax.parallel import make_mesh
    from rapo_jax.runs.trained import find_model

    config = (
        load_config(config_path, overrides) if config_path else with_overrides(copy.deepcopy(WITHOUT_CONFIG), overrides)
    )
    if set(options.suite) - set(BY_ANSWERS):
        require_data(config)
    keep_compilations()
    work_begins()
    mesh = functools.cache(lambda: make_mesh(**vars(config.mesh)))
    opened = [model_at(path, mesh) for path in models]
    bases = [find_model(path, mesh=mesh, option="--base") for path in options.base]
    compares = {"preference", "frontier"} & set(options.suite)
    name = options.reference or (config.model.path if compares else "")
    reference = find_model(name, mesh=mesh, option="--reference") if name else None
    request = goal_request(options, bases, server) if set(options.suite) & set(BY_ANSWERS) else None
    chosen = {"suites": options.suite, "goals": options.goals, "most": options.pairs, "out": Path(options.out)}
    results = evaluate_models(config, opened, reference=reference, request=request, **chosen)
    say(f"\n{text_of(results, details=False)}")
    pictures = ", ".join(f"{result.suite}.png" for result in results)
    say(f"{options.out}: results.txt (more than the above), results.json, results.csv, {pictures}")
    return 0


def model_at(word: str, mesh):
    """The model of a MODEL or of RUN@STEP, which is called so."""
    from rapo_jax.models.directory import is_run_directory
    from rapo_jax.runs.trained import RunModel, find_model

    path, at, step = word.rpartition("@")
    if not (at and step.isdecimal() and is_run_directory(Path(path))):
        return find_model(word, mesh=mesh, option="--model")
    model = find_model(path, mesh=mesh, option="--model", step=int(step))
    assert isinstance(model, RunModel)  # of a run directory
    model.name = word
    return model


def words_of(options: argparse.Namespace) -> tuple[str, list[str], list[str]]:
    """(CONFIG, models, overrides). Without a CONFIG it is that of the first run directory among the models, if there is one."""
    config, models, overrides = "", [], []
    for word in options.overrides:
        if "=" in word and not Path(word).exists():
            overrides.append(word)
        elif not config and (word.endswith((".yaml", ".yml")) or Path(word).is_file()):
            config = word
        else:
            models.append(word)
    models = [*options.model, *models]
    if not models:
        raise UserError("no model is named; add MODEL, a model or run directory, or --model DIR.")
    if not config:
        runs = (Path(re.sub(r"@[0-9]+$", "", model)) / "config.yaml" for model in models)
        config = next((str(path) for path in runs if path.is_file()), "")
    if not config and set(options.suite) - set(BY_ANSWERS):
        raise UserError(
            "CONFIG is missing: name a YAML file with the held-out pairs, or a run directory among the models."
        )
    return config, models, overrides


def refuse_goal_options(options: argparse.Namespace) -> None:
    """Raises UserError for options of the suite `goals` where it is not asked for."""
    if set(options.suite) & set(BY_ANSWERS):
        return
    given = [name for name in OF_GOALS if getattr(options, name) not in (None, False, [])]
    given += [f"judge_{name}" for name in options_of_judge(options)] + ["engine"] * (options.engine != OWN)
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(
            f"{names}: these are of the suites goals and frontier; add one with --suite, or leave them out."
        )


def goal_request(options: argparse.Namespace, bases: list, server):
    """What is asked of the suite `goals`."""
    from rapo_jax.evaluate.goals.asking import Drawing, GoalRequest

    exact = (
        {"temperature": 1.0, "top_p": 1.0} if "frontier" in options.suite else {}
    )  # what models say, and nothing else
    given: dict[str, Any] = exact | {name: value for name in DRAWING if (value := getattr(options, name)) is not None}
    return GoalRequest(
        prompts=options.prompts or "",
        scorers=tuple(options.scorer),
        scales=tuple(options.scale),
        bases=tuple(bases),
        goals=options.goals,
        any_goal=options.any_goal,
        drawing=Drawing(**given, server=server),
        judge=judge_options(options, cache=Path(options.out) / "judge_cache.jsonl", asked="judge" in options.scorer),
        patience=options.scorer_timeout,
    )
