"""The machine's ceiling: GFLOP/s of the fastest large matrix product of jax or torch, measured in every round."""

import argparse
import time
from collections.abc import Callable

from turns import Turns, worker_parser

SECONDS = 0.4  # at least, for each shape
SHAPES = {
    "cpu": [(2048, 2048, 2048), (4096, 2048, 2048), (4096, 384, 1024), (4096, 1024, 384)],
    "gpu": [(4096, 4096, 4096), (8192, 8192, 8192), (16384, 16384, 16384), (16384, 4096, 14336)],
}


def with_jax(dtype: str) -> tuple[str, Callable]:
    import jax
    import jax.numpy as jnp

    platform = "cpu" if jax.default_backend() == "cpu" else "gpu"
    precision = "highest" if dtype == "float32" else None
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))

    def prepare(m: int, k: int, n: int) -> Callable[[], object]:
        a, b = (jax.random.normal(jax.random.key(0), shape, dtype) for shape in ((m, k), (k, n)))
        return lambda: product(a, b).block_until_ready()

    return platform, prepare


def with_torch(dtype: str) -> tuple[str, Callable]:
    import torch

    cuda = torch.cuda.is_available()

    def prepare(m: int, k: int, n: int) -> Callable[[], object]:
        options = {"dtype": getattr(torch, dtype), "device": "cuda" if cuda else "cpu"}
        a, b = torch.randn(m, k, **options), torch.randn(k, n, **options)
        return lambda: (a @ b, cuda and torch.cuda.synchronize())

    return "gpu" if cuda else "cpu", prepare


def measure(run: Callable[[], object], flops: float) -> float:
    """GFLOP/s of the fastest of several runs."""
    run()
    best, until = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return flops / best / 1e9


def main(options: argparse.Namespace) -> None:
    turns = Turns()
    platform, prepare = (with_jax if options.library == "jax" else with_torch)(options.dtype)
    for _ in range(options.steps):
        turns.begin()
        gflops = {f"{m}x{k}x{n}": measure(prepare(m, k, n), 2 * m * k * n) for m, k, n in SHAPES[platform]}
        turns.end()
        turns.answer(gflops=gflops)


if __name__ == "__main__":
    parser = worker_parser(__doc__)
    parser.add_argument("--library", default="jax", choices=("jax", "torch"))
    main(parser.parse_args())
