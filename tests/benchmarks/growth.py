"""How the cost of our training step grows with model, row length, number of pairs and vocabulary.

    python tests/benchmarks/growth.py --out growth.json --picture growth.png

Each point compiles the step of one configuration, runs it on random tokens in full rows, and records the median time of a
step, the temporary memory of the compiled step beside its state, and its tokens. Expect time in proportion to weights and
tokens; little more time for longer rows at a constant number of tokens; and memory that grows with the vocabulary only by a
few [V, D] matrices (gradients and optimizer updates), since logits are not stored.
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import numpy as np

from rapo_jax.batching import pipeline
from rapo_jax.batching.batch_plan import Group
from rapo_jax.config.files import from_dict
from rapo_jax.models.spec import Spec, spec_from_config
from rapo_jax.parallel import make_mesh, matmul_precision, my_rows, num_row_shards, to_device
from rapo_jax.train.optim import adamw
from rapo_jax.train.reference import resident_reference
from rapo_jax.train.state import first_state, random_parameters
from rapo_jax.train.step import make_train_step

NAN, MIB = float("nan"), 2**20


@dataclass(frozen=True)
class Point:
    """A configuration. Pairs of `pair_tokens` tokens, a quarter of them prompt, fill rows of `row_length`."""

    width: int = 256
    layers: int = 4
    vocabulary: int = 8192
    row_length: int = 512
    pair_tokens: int = 256
    pairs: int = 16

    @property
    def tokens(self) -> int:
        return self.pairs * self.pair_tokens

    @property
    def spec(self) -> Spec:
        heads = self.width // 64
        return spec_from_config(
            {
                "model_type": "llama",
                "vocab_size": self.vocabulary,
                "hidden_size": self.width,
                "intermediate_size": 3 * self.width,
                "num_hidden_layers": self.layers,
                "num_attention_heads": heads,
                "num_key_value_heads": max(1, heads // 2),
                "tie_word_embeddings": False,
            }
        )

    @property
    def layer_weights(self) -> int:
        spec = self.spec
        return spec.L * spec.D * (2 * spec.N * spec.H + 2 * spec.K * spec.H + 3 * spec.F)


SWEEPS = {
    "model": [Point(width=width, layers=layers) for width, layers in ((128, 2), (256, 2), (256, 4), (384, 6))],
    "row_length": [Point(row_length=T, pair_tokens=T, pairs=4096 // T) for T in (256, 512, 1024, 2048, 4096)],
    "pairs": [Point(pairs=pairs, pair_tokens=128) for pairs in (8, 16, 32, 64, 128)],
    "vocabulary": [Point(width=128, vocabulary=V, pairs=8) for V in (4096, 8192, 16384, 32768, 65536, 131072)],
}


def random_groups(point: Point) -> list[Group]:
    rng, prompt = np.random.default_rng(0), point.pair_tokens // 4
    response = (point.pair_tokens - prompt) // 2
    draw = lambda length: rng.integers(0, point.vocabulary, length, dtype=np.int32)  # noqa: E731
    return [
        Group(draw(prompt), (draw(response), draw(response)), rewards=(NAN, NAN), side=0, row=row)
        for row in range(point.pairs)
    ]


def measure(point: Point, *, dtype: str, num_steps: int) -> dict:
    config = from_dict(
        {
            "model": {"dtype": dtype, "remat": "mlp"},  # "none" would store the logits
            "train": {"batch_size": point.pairs, "max_steps": num_steps + 1},
            "rows": {"length": point.row_length},
        }
    )
    spec, mesh, groups = point.spec, make_mesh(), random_groups(point)
    plan = pipeline.pack_steps(groups, [np.arange(point.pairs)], config, num_row_shards=num_row_shards(mesh))
    parameters = random_parameters(spec, mesh, seed=0)
    reference = resident_reference(parameters, config, spec, mesh)
    state = first_state(parameters, spec, mesh, adamw(config.optimizer, spec))
    step = make_train_step(config, spec, mesh, plan.shape, num_steps=num_steps + 1)
    batch = to_device(next(pipeline.batches(groups, plan, my_rows(mesh, plan.shape.B))(0)), mesh, plan.shape.B)
    seconds = []
    with jax.set_mesh(mesh), matmul_precision(config.model.dtype):
        compiled = step.lower(state, reference, batch).compile()
        for _ in range(num_steps + 1):
            started = time.perf_counter()
            state, metrics = compiled(state, reference, batch)
            jax.block_until_ready((state, metrics))
            seconds.append(time.perf_counter() - started)
    return asdict(point) | {
        "tokens": point.tokens,
        "layer_weights": point.layer_weights,
        "seconds": statistics.median(seconds[1:]),
        "temporary_mib": compiled.memory_analysis().temp_size_in_bytes / MIB,
        "vocabulary_gradients_mib": 2 * 4 * spec.V * spec.D / MIB,
        "logits_mib": 4 * plan.shape.B * plan.shape.S * spec.V / MIB,  # of a microbatch, if they were stored
        "microbatches": plan.shape.M,
        "real_token_fraction": plan.real_token_fraction,
    }


def draw(figures: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    points = {name: figures["sweeps"][name] for name in SWEEPS}
    column = lambda name, key: np.array([point[key] for point in points[name]])  # noqa: E731
    figure, ((model, rows), (pairs, vocabulary)) = plt.subplots(2, 2, figsize=(8.5, 6.5), layout="constrained")
    for axes, name, key, title in (
        (model, "model", "layer_weights", "weights of the layers"),
        (pairs, "pairs", "tokens", "tokens in a step (8 to 128 pairs)"),
    ):
        x, y = column(name, key), column(name, "seconds")
        axes.plot(x, x * y[-1] / x[-1], "--", color="0.6", label="in proportion")
        axes.plot(x, y, "o-", label="measured")
        axes.set(title=f"time by {title}", ylabel="seconds a step", ylim=0, xlim=0)
    rows.plot(column("row_length", "row_length"), column("row_length", "seconds"), "o-", label="measured")
    rows.set(title="time by row length, 4096 tokens a step", ylabel="seconds a step", ylim=0, xlim=0)
    V, held = column("vocabulary", "vocabulary"), column("vocabulary", "temporary_mib")
    vocabulary.plot(V, held, "o-", label="temporary memory")
    vocabulary.plot(
        V, column("vocabulary", "vocabulary_gradients_mib"), "o-", label="gradients of the two [V, D] matrices"
    )
    vocabulary.plot(V, column("vocabulary", "logits_mib"), "--", color="0.6", label="the logits, if they were stored")
    vocabulary.set(title="memory by vocabulary", ylabel="MiB", ylim=0, xlim=0)
    for axes in (model, rows, pairs, vocabulary):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="upper left" if axes is not rows else "lower left")
    figure.savefig(path, dpi=150)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", default=",".join(SWEEPS), help="some of %(default)s (default: all)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each point (default %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    parser.add_argument("--picture", type=Path, help="write a picture of all four sweeps there")
    options = parser.parse_args(arguments)
    options.sweeps = options.sweeps.split(",")
    unknown = [name for name in options.sweeps if name not in SWEEPS]
    if unknown:
        parser.error(f"--sweeps {', '.join(unknown)}: unknown; known: {', '.join(SWEEPS)}")
    if options.picture and len(options.sweeps) < len(SWEEPS):
        parser.error("--picture shows all sweeps; omit --sweeps")
    return options


def main() -> None:
    options = parse()
    sweeps: dict[str, list[dict]] = {}
    for name in options.sweeps:
        print(name)
        for point in SWEEPS[name]:
            figures = measure(point, dtype=options.dtype, num_steps=options.steps)
            sweeps.setdefault(name, []).append(figures)
            shown = {"model": "layer_weights"}.get(name, name)
            print(
                f"  {figures[shown]:>9,}: {figures['seconds']:7.3f} s, {figures['tokens']:,} tokens, "
                f"{figures['temporary_mib']:,.0f} MiB temporary",
                flush=True,
            )
    machine = {"device": jax.devices()[0].device_kind, "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    figures = {"sweeps": sweeps, "dtype": options.dtype, "machine": machine, "versions": {"jax": jax.__version__}}
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
    if options.picture:
        draw(figures, options.picture)


if __name__ == "__main__":
    main()
