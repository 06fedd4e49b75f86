"""What the compiler says a step needs, for vocabularies and rows that would not fit if it were done naively."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from rapo_jax.batch import FLOATS, LETTERS, Batch, Shape
from rapo_jax.train.optim import adamw
from rapo_jax.train.state import abstract_parameters, abstract_state
from rapo_jax.train.step import batch_shardings, make_train_step
from tests import tiny

SMALL, LARGE = 8192, 131072
MIB = 2**20


def temporary_bytes(*, V: int, T: int) -> int:
    """Of a compiled training step of 2 layers, D = 64, two rows a microbatch, every position scored."""
    llama = tiny.tiny_spec("llama3")
    spec = replace(llama, V=V, D=64, L=2, H=16, F=128, windows=llama.windows[:2])
    config, mesh = tiny.tiny_config(), tiny.mesh_of(1, 1, 1)
    shape = Shape(M=2, B=2, T=T, S=T, P=4, C=2)
    step = make_train_step(config, spec, mesh, shape, num_steps=10)
    sizes = {letter: getattr(shape, letter) for letter in "MBTSPCAE"}
    where = batch_shardings(mesh, shape)
    batch = Batch(**{
        name: jax.ShapeDtypeStruct(
            tuple(sizes[letter] for letter in letters),
            jnp.float32 if name in FLOATS else jnp.int32,
            sharding=getattr(where, name),
        )
        for name, letters in LETTERS.items()
    })  # fmt: skip
    state = abstract_state(spec, mesh, adamw(config.optimizer, spec))
    with jax.set_mesh(mesh):
        compiled = step.lower(state, abstract_parameters(spec, mesh), batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory_never_grows_with_vocabulary_times_row_length(capsys):
    """When this fails, an array of [rows, positions, vocabulary] is back: for 2 rows of 2048 positions over 128k
    tokens, 2 GiB of float32 logits, and a pod that fit yesterday is out of memory. A larger vocabulary may cost only
    the gradients of its matrices, whose size does not depend on row length."""
    temporary = {(V, T): temporary_bytes(V=V, T=T) for V in (SMALL, LARGE) for T in (1024, 2048)}
    growth = {T: temporary[LARGE, T] - temporary[SMALL, T] for T in (1024, 2048)}
    matrix, logits = (LARGE - SMALL) * 64 * 4, (LARGE - SMALL) * 2 * (2048 - 1024) * 4
    with capsys.disabled():
        sizes = ", ".join(f"V={V} T={T}: {size / MIB:.0f} MiB" for (V, T), size in temporary.items())
        print(f"\ntemporaries {sizes}; growth is {[round(g / matrix, 2) for g in growth.values()]} [V, D] matrices")
    assert abs(growth[2048] - growth[1024]) < logits / 16  # what is left is how the compiler places its buffers
    assert growth[2048] < 8 * matrix
