"""A run in words and numbers: what was trained from what, what became of the data, how fast it went, how to repeat it."""

import math
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from rapo_jax.errors import axes_in_words, counted
from rapo_jax.report.comparison import setting
from rapo_jax.report.run_directory import RunRecord, part

Rows = list[tuple[str, str]]  # (what, value)

# (name, prefix) of the goal sides whose metrics stand apart, and what the held-out ones begin with.
SIDES = (
    ("all", ""),
    ("goal of chosen", "goal_chosen/"),
    ("goal of rejected", "goal_rejected/"),
    ("highest goal", "goal_best/"),
)
METRICS = (
    ("loss", "loss"),
    ("accuracy", "rewards/accuracies"),
    ("margin of implicit rewards", "rewards/margins"),
    ("log-probability of chosen (nats)", "logps/chosen"),
    ("log-probability of rejected (nats)", "logps/rejected"),
)
NOT_RECORDED = "not recorded: the run is of an earlier version"


def origin(run: RunRecord) -> Rows:
    """What was trained from what."""
    config, made = run.config, part(run.data, "run")
    rank = config.get("lora.rank")
    rows = [
        ("model", text(config, "model.path")),
        ("size", size_of(made)),
        ("trained", f"LoRA, rank {rank} on {setting(config.get('lora.targets'))}" if rank else "all weights"),
        ("dtype", text(config, "model.dtype")),
        ("objective", objective_of(config)),
        ("goals", goals_of(config)),
        ("data", sources_of(config)),
        ("held out", held_out_of(config)),
        ("batch", f"{text(config, 'train.batch_size')} a step, {text(config, 'optimizer.schedule')} learning rate "
         f"{text(config, 'optimizer.learning_rate')}"),
        ("steps", steps_of(run)),
        ("seed", text(config, "seed")),
        ("mesh", mesh_of(config, made)),
        ("versions", versions_of(made)),
    ]  # fmt: skip
    return [(what, value) for what, value in rows if value]


def text(config: dict[str, Any], key: str) -> str:
    return setting(config[key]) if key in config else "?"


def size_of(made: dict[str, Any]) -> str:
    if not isinstance(count := made.get("parameters"), int):
        return ""
    trained = made.get("trained_parameters")
    apart = f", {trained:,} of them trained" if isinstance(trained, int) and trained != count else ""
    return f"{made.get('family', 'model')}, {count:,} parameters{apart}"


def objective_of(config: dict[str, Any]) -> str:
    """The loss, its further terms, and the options that it was given.

    >>> objective_of({"objective.name": "dpo", "objective.weight": 1.0, "objective.beta": 0.1, "objective.best_goal_weight": 0.0})
    'dpo, beta 0.1'
    """
    own = {key.removeprefix("objective."): value for key, value in config.items() if key.startswith("objective.")}
    name, weight, plus = own.pop("name", "?"), own.pop("weight", 1.0), own.pop("plus", None) or []
    best = own.pop("best_goal_weight", 0.0)
    terms = [name if weight == 1 else f"{setting(weight)} {name}"]
    terms += [f"{setting(term.get('weight', 1.0))} {term.get('name', '?')}" for term in plus if isinstance(term, dict)]
    terms += [f"{setting(best)} likelihood at the highest goal"] if best else []
    options = [f"{option} {setting(value)}" for option, value in own.items() if value is not None and value != 0]
    return ", ".join([" + ".join(terms), *options])


def goals_of(config: dict[str, Any]) -> str:
    sides = config.get("relabel.goals")
    if not sides:
        return "none: plain preferences"
    attributes = config.get("relabel.attributes")
    of = f", one for each of {setting(attributes)}" if attributes else ""
    low, high = text(config, "relabel.goal_min"), text(config, "relabel.goal_max")
    return f"rewards of {' and '.join(map(str, sides))} responses, from {low} to {high}{of}"


def sources_of(config: dict[str, Any]) -> str:
    sources = [each.get("path", "?") for each in config.get("data.sources") or [] if isinstance(each, dict)]
    return ", ".join(map(str, sources)) or text(config, "data.path")


def held_out_of(config: dict[str, Any]) -> str:
    share = config.get("data.eval_fraction")
    return str(config.get("data.eval_path") or "") or (
        f"{share:.1%} of the prompts" if isinstance(share, float) and share else "nothing"
    )


def steps_of(run: RunRecord) -> str:
    done = f"{run.steps:,}" if run.planned is None else f"{run.steps:,} of {run.planned:,}"
    epoch, skipped = run.last.get("epoch", math.nan), run.last.get("skipped_steps", 0.0)
    done += f", epoch {epoch:.2f}" * math.isfinite(epoch) + f"; {skipped:g} changed nothing" * (skipped > 0)
    return done + "".join(lost_of(run, *each) for each in (("loss", "loss"), ("held-out loss", "eval_loss")))


def lost_of(run: RunRecord, name: str, metric: str) -> str:
    """In how many reports a metric is not finite, and since when; "" where it always is."""
    if not (lost := run.lost(metric)):
        return ""
    reports = sum(metric in record for record in run.records)
    return f"; {name} not finite in {len(lost):,} of {counted(reports, 'report')}, first at step {lost[0]:,}"


def mesh_of(config: dict[str, Any], made: dict[str, Any]) -> str:
    axes = part(made, "mesh") or asked_mesh(config)
    said = axes_in_words(axes)
    if device := made.get("device"):
        return f"{made.get('num_devices', '?')} {device} ({said})"
    return f"{said} (-1: all that are left); devices {NOT_RECORDED}"


def asked_mesh(config: dict[str, Any]) -> dict[str, Any]:
    """The sizes that a configuration asks for; those of earlier versions have no context axis."""
    absent = {"data": "?", "fsdp": "?", "context": 1, "tensor": "?"}
    return {axis: config.get(f"mesh.{axis}", size) for axis, size in absent.items()}


def versions_of(made: dict[str, Any]) -> str:
    named = [f"{name} {made[name]}" for name in ("rapo_jax", "jax", "python") if name in made]
    return ", ".join(named) or NOT_RECORDED


def data_facts(report: dict[str, Any]) -> Rows:
    """What became of the rows of one part of data_report.json."""
    rows: Rows = [("rows read", count(report.get("rows_read")))]
    reasons = part(report, "rows_dropped")
    rows += [(f"  {reason.replace('_', ' ')}", count(number)) for reason, number in reasons.items()]
    rows.append(("records", count(report.get("records"))))
    ties = part(report, "ties")
    rows.append(
        (
            "ties (equal scores)",
            f"{count(ties.get('found'))} found, {count(ties.get('dropped'))} dropped" if ties else "",
        )
    )
    rows.append(("scores from", str(report.get("scores_from", ""))))
    preferences = part(report, "preferences")
    named = {"chosen": "goal of chosen", "rejected": "goal of rejected", "best": "highest goal", "no_goal": "no goal"}
    rows.append(
        ("preferences", ", ".join(f"{count(number)} {named.get(side, side)}" for side, number in preferences.items()))
    )
    rows.append(("rejected above half of the scale", share(report.get("rejected_above_half_of_scale"))))
    rows.append(("chosen below half of the scale", share(report.get("chosen_below_half_of_scale"))))
    rows.append(("label against the scores", count(report.get("label_against_scores"))))
    follows = report.get("length_follows_score")
    rows.append(("rank correlation of length and score", f"{follows:+.2f}" if isinstance(follows, float) else ""))
    for name, tokens in part(report, "tokens").items():
        if isinstance(tokens, dict):
            numbers = [f"{how} {count(tokens.get(how))}" for how in ("mean", "median", "p95", "max") if how in tokens]
            rows.append((f"tokens of a {name}", ", ".join(numbers)))
    cut = part(report, "cut")
    for what in ("prompt", "response"):
        if f"{what}_tokens_cut" in cut:
            of = f" in {count(cut.get(f'rows_with_{what}_cut'))} rows" if cut[f"{what}_tokens_cut"] else ""
            rows.append((f"tokens of {what}s cut", count(cut[f"{what}_tokens_cut"]) + of))
    rows += [
        (f"  dropped as tokens: {reason.replace('_', ' ')}", count(number))
        for reason, number in part(cut, "dropped").items()
    ]
    return [(what, value) for what, value in rows if value]


def count(number: Any) -> str:
    return f"{number:,}" if isinstance(number, int | float) else ""


def share(number: Any) -> str:
    return f"{number:.1%}" if isinstance(number, int | float) else ""


def speed(run: RunRecord) -> dict[str, tuple[str, float | None]]:
    """name -> (unit, number): medians over reports, the first of which, with its compilation, is left out; of memory the most."""
    seconds = run.seconds
    return {
        "pairs_per_s": ("groups/s", run.median("pairs_per_s")),
        "real_tokens_per_s": ("real tokens/s", run.median("real_tokens_per_s")),
        "real_token_fraction": ("share of real tokens", run.median("real_token_fraction")),
        "mfu": ("model-FLOP utilisation", run.median("mfu")),
        "step_s": ("seconds a step", run.median("time/step_s")),
        "waiting_for_data_s": ("seconds of it waiting for data", run.median("time/waiting_for_data_s")),
        "peak_gib": ("GiB of device memory, at most", run.highest("memory/peak_gib")),
        "hours": ("hours in steps, without evaluations and saves", None if seconds is None else seconds / 3600),
    }


def metric_rows(run: RunRecord) -> tuple[str, list[tuple[str, list[float | None]]]]:
    """(where they are from, [(metric, its value on each side)]): of the last evaluation, else of the last report."""
    record, prefix = (run.evaluated, "eval_") if run.evaluated else (run.last, "")
    step = int((record or {"step": 0})["step"])
    rows = [(name, [finite(record.get(f"{prefix}{side}{metric}")) for _, side in SIDES]) for name, metric in METRICS]
    if prefix:
        plain = [finite(record.get(f"eval_plain_{metric}")) for _, metric in METRICS]
        rows = [(name, [*values, each]) for (name, values), each in zip(rows, plain, strict=True)]
    where = f"held-out data at step {step:,}" if prefix else f"training data at step {step:,}, one report"
    return where, [(name, values) for name, values in rows if any(each is not None for each in values)]


def finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def repeat(run: RunRecord) -> list[str]:
    """Commands that train the run again, and use it."""
    path = run.path if run.path.name not in ("", "..") else run.path.resolve()  # of "." no neighbour can be named
    config = path / "config.yaml"
    return [
        command("rapo", "train", str(config), f"run_dir={path}-again"),
        command("rapo", "export", str(path), f"{path}-hf"),
        command("rapo", "evaluate", str(config), "--model", str(path), "--out", f"{path}-results"),
    ]


def command(*words: str) -> str:
    return shlex.join(words)


def columns_used(rows: Sequence[tuple[str, Sequence[float | None]]], names: Iterable[str]) -> list[tuple[int, str]]:
    """(index, name) of the columns that have a number."""
    return [(n, name) for n, name in enumerate(names) if any(n < len(v) and v[n] is not None for _, v in rows)]
