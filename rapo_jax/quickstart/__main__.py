"""`python -m rapo_jax.quickstart`: the two steps of launch/quickstart.sh that are not verbs of `rapo`.

    world DIR                        write the world
    report WORLD OUT NAME=DIR ...    ask every model for goals 1 to 10, judge, print the table, draw it

A name may be given several times, for models of several seeds; its row is then their mean.
"""

import argparse
import json
from pathlib import Path

from rapo_jax.quickstart import world

PROMPTS = 64


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rapo_jax.quickstart", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    steps = parser.add_subparsers(required=True, dest="step")
    add = steps.add_parser("world")
    add.add_argument("directory", type=Path)
    add = steps.add_parser("report")
    add.add_argument("world", type=Path)
    add.add_argument("out", type=Path)
    add.add_argument("models", nargs="+", metavar="NAME=DIR")
    options = parser.parse_args()
    if options.step == "world":
        world.write_world(options.directory)
        print(f"{options.directory}: {', '.join(sorted(path.name for path in options.directory.iterdir()))}")
    else:
        report(options.world, options.out, [model.split("=", 1) for model in options.models])


def report(world_dir: Path, out: Path, models: list[list[str]]) -> None:
    """Writes sweep.json and sweep.png into `out`, and prints the table and a few answers."""
    from rapo_jax.evaluate.sweep import draw, sweep, table
    from rapo_jax.generate.decode import Sampling

    prompts = [json.loads(line)["prompt"] for line in (world_dir / "prompts.jsonl").open()][:PROMPTS]
    sampling = Sampling(max_new_tokens=world.NUM_WORDS + 7, temperature=1.0)
    sweeps: dict = {}
    for name, directory in models:
        found = sweep(Path(directory), prompts, goals=world.SCORES, judge=world.judge, sampling=sampling)
        sweeps.setdefault(name, []).append(found)
    print(f"\nMean score of answers to {len(prompts)} prompts that training never saw, judged by counting (1 to 10):\n")
    print(table(sweeps))
    name, best = models[-1][0], sweeps[models[-1][0]][-1]
    print(f"\n{prompts[0]}")
    for goal in (1, 5, 10):
        answer = best.examples[best.goals.index(goal)]
        print(f"  {name} asked for {goal}: {answer}   (scores {world.judge(prompts[0], answer)})")
    out.mkdir(parents=True, exist_ok=True)
    draw(sweeps, out / "sweep.png", title="Quality by goal asked")
    numbers = {
        name: [{"mean_score_by_goal": run.by_goal.tolist(), "rank_correlation": run.rank_correlation} for run in runs]
        for name, runs in sweeps.items()
    }
    (out / "sweep.json").write_text(json.dumps({"goals": list(world.SCORES), "models": numbers}, indent=2) + "\n")
    print(f"\n{out / 'sweep.png'} shows the same as a picture, {out / 'sweep.json'} holds the numbers.")


if __name__ == "__main__":
    main()
