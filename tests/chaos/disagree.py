"""Starts two processes that disagree, in one thing at a time: both must stop at the start, name it, and have written nothing.

    python -m tests.chaos.disagree [--directory DIR]

Prints a line for every case; exits with 1 if any went wrong. Takes some 4 minutes on two idle cores.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.commands import PROGRAM, run
from tests.tiny import runs
from tests.tiny.directories import write_weights

OTHER_VERSION = "import rapo_jax; rapo_jax.__version__ = '0.0.9'\n" + PROGRAM


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    root = options.directory or Path(tempfile.mkdtemp(prefix="disagree-"))
    world = runs.make_world(root)
    wrong = [
        name
        for name, case in cases(world, root).items()
        if name.startswith(options.only) and not agrees(name, world, root, *case)
    ]
    sys.exit(f"wrong: {', '.join(wrong)}" if wrong else 0)


def agrees(name: str, world: runs.World, root: Path, second: list[str], said: str) -> bool:
    """Whether both processes end with 2, say `said`, and leave no run directory; the second has more arguments."""
    run_dir = root / "run"
    first = [
        *world.train(run_dir),
        f"data.chat_template={world.directory / 'chat_template.jinja'}",
        *([f"data.rewards={root / 'rewards.jsonl'}"] if name == "rewards" else []),
    ]
    programs = (PROGRAM, OTHER_VERSION if name == "version" else PROGRAM)
    ended = run([first, [*first, *second]], log=root / "log", cache=root / "compiled", programs=programs)
    last = [ended.last_line(process) for process in range(2)]
    right = ended.codes == [2, 2] and all(said in line for line in last) and not run_dir.exists()
    print(
        f"{name:16} {'named' if right else 'WRONG'} after {ended.seconds:.0f} s, {ended.codes}: {last[0][:160]}",
        flush=True,
    )
    if not right:
        print("\n".join(last), run_dir.exists(), flush=True)
        shutil.rmtree(run_dir, ignore_errors=True)
    return right


def cases(world: runs.World, root: Path) -> dict[str, tuple[list[str], str]]:
    """What the second process is given besides, and what both must say."""
    other = {name: shutil.copytree(world.directory, root / name) for name in ("weights", "tokenizer", "config", "data")}
    shape = json.loads((world.directory / "config.json").read_text())
    write_weights(other["weights"], shape, seed=1)
    (other["config"] / "config.json").write_text(json.dumps(shape | {"rope_theta": 12345.0}))
    for name in ("pairs", "eval_pairs"):
        path = other["data"] / f"{name}.jsonl"
        first, *others = path.read_text().splitlines(keepends=True)
        row = json.loads(first)
        row["chosen"][-1]["content"] += " indeed"
        path.write_text(json.dumps(row) + "\n" + "".join(others))
    tokenizer = other["tokenizer"] / "tokenizer.json"
    changed = json.loads(tokenizer.read_text())
    vocabulary = changed["model"]["vocab"]
    *_, one, another = vocabulary
    vocabulary[one], vocabulary[another] = vocabulary[another], vocabulary[one]
    tokenizer.write_text(json.dumps(changed))
    template = root / "other.jinja"
    template.write_text("{# another #}" + (world.directory / "chat_template.jinja").read_text())
    rows = [json.loads(line) for line in (world.directory / "pairs.jsonl").read_text().splitlines()]
    for name, more in (("rewards", 0), ("other_rewards", 1)):
        lines = (json.dumps({"row": n, "rewards": [8 + more, 3]}) + "\n" for n in range(1, len(rows) + 1))
        (root / f"{name}.jsonl").write_text("".join(lines))
    return {
        "learning rate": (
            ["optimizer.learning_rate=1e-4"],
            "optimizer.learning_rate is 0.001 in process 0 and 0.0001 in process 1",
        ),
        "seed": (["seed=3"], "seed is 0 in process 0 and 3 in process 1"),
        "max_steps": (["train.max_steps=11"], "train.max_steps is 10 in process 0 and 11 in process 1"),
        "run_dir": ([f"run_dir={root / 'elsewhere'}"], "run_dir is "),
        "mesh": (["mesh.data=2", "mesh.fsdp=1"], "mesh.data is 1 in process 0 and 2 in process 1"),
        "data file": ([f"data.path={other['data'] / 'pairs.jsonl'}"], "the data (rows, or their rewards) is "),
        "held-out data": ([f"data.eval_path={other['data'] / 'eval_pairs.jsonl'}"], "the held-out data (eval) is "),
        "rewards": ([f"data.rewards={root / 'other_rewards.jsonl'}"], "the data (rows, or their rewards) is "),
        "chat template": ([f"data.chat_template={template}"], "the tokenizer or its chat template is "),
        "tokenizer": ([f"model.path={other['tokenizer']}"], "the tokenizer or its chat template is "),
        "weights": ([f"model.path={other['weights']}"], "model.safetensors of the model is "),
        "config.json": ([f"model.path={other['config']}"], "config.json of the model is "),
        "version": ([], "the version of rapo_jax is "),
    }


if __name__ == "__main__":
    main()
