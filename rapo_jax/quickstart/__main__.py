"""`python -m rapo_jax.quickstart`: the two steps of launch/quickstart.sh that are not `rapo` commands.

    world DIR                        write the world
    report WORLD OUT NAME=DIR ...    ask every model for goals 1 to 10, judge the answers, print a table and draw it

Repeat a NAME to average models trained with several seeds.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapo_jax.borders import read_json_lines, write_json, write_json_lines
from rapo_jax.errors import UserError
from rapo_jax.quickstart import world

if TYPE_CHECKING:
    from rapo_jax.evaluate.sweep import Sweep

PROMPTS = 64
SHOWN_GOALS = (1, 5, 10)


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
        return
    unnamed = [model for model in options.models if "=" not in model]
    if unnamed:
        parser.error(f"{unnamed[0]!r} is not NAME=DIR")
    try:
        report(options.world, options.out, [tuple(model.split("=", 1)) for model in options.models])
    except UserError as error:
        print(f"quickstart: {error}", file=sys.stderr)
        sys.exit(2)


def report(world_dir: Path, out: Path, models: Sequence[tuple[str, str]]) -> None:
    """Sweeps the goals of every (name, directory); writes sweep.json, sweep.png and answers.jsonl, prints the table and a few
    answers."""
    from rapo_jax.evaluate.sweep import sweep
    from rapo_jax.evaluate.sweep_report import draw_sweeps, sweep_table, sweep_tree
    from rapo_jax.generate.decode import Sampling
    from rapo_jax.opened import open_model

    prompts = [row["prompt"] for _, row in read_json_lines(world_dir / "prompts.jsonl")][:PROMPTS]
    sampling = Sampling(max_new_tokens=world.NUM_WORDS + 7, temperature=1.0)
    goals = [float(score) for score in world.SCORES]
    sweeps: dict[str, list[Sweep]] = {}
    for name, directory in models:
        model = open_model(directory, option=name)
        found = sweep(model, prompts, goals=goals, judge=world.judge, sampling=sampling)
        sweeps.setdefault(name, []).append(found)
    print(f"\nMean score of answers to {len(prompts)} prompts that training never saw, judged by counting (1 to 10):\n")
    print(sweep_table(sweeps))
    name = models[-1][0]
    print_examples(name, sweeps[name][-1], prompts[0])
    out.mkdir(parents=True, exist_ok=True)
    draw_sweeps(sweeps, out / "sweep.png", title="Quality by goal asked")
    write_json(out / "sweep.json", sweep_tree(sweeps))
    write_json_lines(out / "answers.jsonl", answer_rows(sweeps, prompts))
    print(f"\n{out / 'sweep.png'} shows the same as a picture, {out / 'sweep.json'} holds the numbers.")


def answer_rows(sweeps: "Mapping[str, Sequence[Sweep]]", prompts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Every answer with its model, goal and score, as rows that `rapo report` reads."""
    for name, runs in sweeps.items():
        for run in runs:  # one a seed
            for goal, texts, scores in zip(run.goals, run.answers, run.scores, strict=True):
                for prompt, text, score in zip(prompts, texts, scores, strict=True):
                    yield {"model": name, "prompt": prompt, "goal": goal, "response": text, "score": float(score)}


def print_examples(name: str, found: "Sweep", prompt: str) -> None:
    """A model's answers to one prompt at a low, a medium and the highest goal."""
    print(f"\n{prompt}")
    for goal in SHOWN_GOALS:
        answer = found.examples[found.goals.index(goal)]
        print(f"  {name} asked for {goal}: {answer}   (scores {world.judge(prompt, answer)})")


if __name__ == "__main__":
    main()
