"""`rapo score`."""

import argparse
import os
from pathlib import Path
from typing import Any

from rapo_jax.cli.preparing import keep_compilations, leave_accelerators, require_data
from rapo_jax.errors import UserError, counted
from rapo_jax.interruption import work_begins


def score(options: argparse.Namespace) -> int:
    """Writes a reward for every response of a source, or compares two files of them."""
    if options.compare:
        return compare(options)
    for name, missing in (("config", "CONFIG, a YAML file,"), ("out", "--out FILE")):
        if not getattr(options, name):
            raise UserError(f"{missing} is needed; see rapo score --help.")
    if options.scorer == "judge" or options.scorer.startswith("command:"):
        leave_accelerators()
    from rapo_jax.config.files import load_config
    from rapo_jax.score.responses import score_source
    from rapo_jax.score.scorer import ScoreRequest

    config = load_config(options.config, options.overrides)
    require_data(config)
    keep_compilations()
    work_begins()
    fields = ("scorer", "model", "reference", "step", "write")
    judge = judge_options(
        options, cache=Path(options.out).with_name("judge_cache.jsonl"), asked=options.scorer == "judge"
    )
    request = ScoreRequest(
        **{name: getattr(options, name) for name in fields}, patience=options.scorer_timeout, judge=judge
    )
    tell_scores(Path(options.out), score_source(config, request, Path(options.out)))
    return 0


def judge_options(options: argparse.Namespace, *, cache: Path, asked: bool):
    """How a judge is asked; None where no option of a judge is given. `cache`: where its replies are, unless an option says so;
    `asked`: whether it is the scorer."""
    from rapo_jax.score.scorer import JudgeOptions
    from rapo_jax.servers.access import key_of_environment

    given = options_of_judge(options)
    if not given:
        return None
    cache = Path(given.pop("cache", "") or cache)
    url, model = given.pop("url", ""), given.pop("model", "")
    default, option = JudgeOptions.key_from, "--judge-key-from"
    key = ""  # another scorer refuses all of them
    if asked:
        key = key_of_environment(os.environ, given.get("key_from"), default=default, option=option)
    return JudgeOptions(url, model, key, **given, cache=cache)


def options_of_judge(options: argparse.Namespace) -> dict[str, Any]:
    """Those options of a judge that are given, without the beginning of their names."""
    given = {name: value for name, value in vars(options).items() if name.startswith("judge_")}
    return {name.removeprefix("judge_"): value for name, value in given.items() if value not in (None, False)}


def tell_scores(out: Path, scored) -> None:
    """Prints what was scored, by what, and what to do with it."""
    from rapo_jax.distributed import say

    flat = [reward for each in scored.rewards for reward in each]
    origin = ", ".join(f"{key} {value}" for key, value in scored.origin.items())
    responses, rows = counted(len(flat), "response"), counted(len(scored.rewards), "row")
    say(f"{out}: {responses} of {rows} ({origin})")
    if flat:
        say(f"  from {min(flat):.4g} to {max(flat):.4g}, mean {sum(flat) / len(flat):.4g}")
    asked_for = scored.origin.get("asked_for")
    if asked_for == "comparisons":
        say("  a share won compares the responses to one prompt only, which is enough without goals")
    more = {"ratings": "", "comparisons": " relabel.goals=[]"}.get(str(asked_for), " relabel.scale.fit=quantile")
    say(f"  next: rapo train CONFIG data.rewards={out}{more}")


def compare(options: argparse.Namespace) -> int:
    """Says how far two files of scores agree, and draws it where --out says so."""
    from rapo_jax.score.compare import agreement_in_words, compare_scores, draw_agreement

    names = ("scorer", "model", "reference", "step", "write", "scorer_timeout")
    given = ["CONFIG"] * bool(options.config)
    given += [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) not in (None, "", ())]
    given += [f"--judge-{name.replace('_', '-')}" for name in options_of_judge(options)]
    if given:
        raise UserError(f"--compare reads two files of scores and nothing else; leave out {', '.join(given)}.")
    out = Path(options.out) if options.out else None
    if out and out.suffix != ".png":
        raise UserError(f"--out={out}: with --compare it is a picture; give a name that ends with .png.")
    if out and out.exists():
        raise UserError(f"{out} exists; nothing was written. Choose another --out.")
    one, other = map(Path, options.compare)
    found, pairs = compare_scores(one, other)
    print(agreement_in_words(found, one, other))
    if out:
        draw_agreement(found, pairs, names=(str(one), str(other)), path=out)
        print(f"  {out}")
    return 0
