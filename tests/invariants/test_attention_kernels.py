"""The fused kernels compute what the einsum computes, whatever the mask."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rapo_jax.errors import UserError
from rapo_jax.models.attention.cpu import TILE, attend_tiles
from rapo_jax.models.attention.dispatch import KERNELS, attend, computed_length, kernel_for, takes, visible
from rapo_jax.models.attention.einsum import attend_einsum
from rapo_jax.models.attention.gpu import attend_triton
from rapo_jax.models.attention.kernel import Kernel
from rapo_jax.models.attention.tpu import attend_splash
from rapo_jax.models.decoder import ForwardOptions, abstract_decoder, plain_layout
from tests import tiny

B, N, K, H = 2, 4, 2, 16


def random_mask(random, T, S):
    """One key in twenty; whole tiles with nothing in them, others with a single key, so that each kind of tile occurs."""
    mask_BTU = random.random((B, T, S)) < 0.05
    empty = random.random((B, T // TILE, S // TILE)) < 0.4
    mask_BTU &= ~empty.repeat(TILE, axis=1).repeat(TILE, axis=2)
    mask_BTU[:, np.arange(T), random.integers(0, S, T)] = True  # every query sees some key
    return mask_BTU


FUSED = {
    "tiles": attend_tiles,
    "splash": partial(attend_splash, interpret=True),
    "triton": partial(attend_triton, interpret=True),
}


@pytest.mark.parametrize(
    ("kernel", "T", "S", "softcap"),
    [
        ("tiles", 256, 256, None),
        ("tiles", 384, 384, 2.0),
        ("tiles", 128, 384, None),
        ("splash", 256, 256, 2.0),
        pytest.param("splash", 384, 384, None, marks=pytest.mark.slow),
        pytest.param("splash", 128, 384, None, marks=pytest.mark.slow),
        ("triton", 256, 256, None),
        pytest.param("triton", 384, 384, 2.0, marks=pytest.mark.slow),
        ("triton", 128, 384, 2.0),
    ],
)
def test_kernels_agree_with_einsum_forward_and_backward_on_random_masks(kernel, T, S, softcap):
    """When this fails, training follows different gradients on different processors."""
    random = np.random.default_rng(T + S)
    array = lambda *shape: random.normal(size=shape).astype(np.float32)  # noqa: E731
    inputs = array(B, T, N, H), array(B, S, K, H), array(B, S, K, H)
    cotangent_BTNH, mask_BTU = array(B, T, N, H), jnp.asarray(random_mask(random, T, S))

    def value_and_gradients(kernel):
        @jax.jit
        def both(*inputs):
            out_BTNH, pull_back = jax.vjp(partial(kernel, mask_BTU=mask_BTU, scale=0.5, softcap=softcap), *inputs)
            return out_BTNH, *pull_back(cotangent_BTNH)

        return both(*inputs)

    names = ("out", "q gradient", "k gradient", "v gradient")
    fused, einsum = value_and_gradients(FUSED[kernel]), value_and_gradients(attend_einsum)
    for name, a, b in zip(names, fused, einsum, strict=True):
        assert np.abs(b).max() > 0.5
        np.testing.assert_allclose(a, b, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("kernel", ["tiles", pytest.param("splash", marks=pytest.mark.slow), "triton"])
def test_long_rows_that_no_tile_divides_are_padded_for_the_kernel(kernel, monkeypatch):
    """When this fails, rows of 1,616 tokens hold [T, T] scores per head, or padding changes what real tokens see."""
    monkeypatch.setitem(KERNELS, kernel, replace(KERNELS[kernel], attend=FUSED[kernel]))
    T = 4 * KERNELS[kernel].multiple + 16
    random = np.random.default_rng(T)
    q, k, v, cotangent_BTNH = (random.normal(size=(1, T, heads, H)).astype(np.float32) for heads in (N, K, K, N))
    mask_BTT = jnp.asarray((random.random((1, T, T)) < 0.05) | np.eye(T, dtype=bool))
    assert computed_length(kernel, T=T, U=T, H=H) == 5 * KERNELS[kernel].multiple
    assert computed_length(kernel, T=T // 2, U=T // 2, H=H) is None is computed_length(kernel, T=T, U=2 * T, H=H)

    def value_and_gradients(name):
        @jax.jit
        def both(*inputs):
            seen = visible(mask_BTT, kernel=name, H=H)
            assert seen.kernel == name
            out_BTNH, pull_back = jax.vjp(partial(attend, visible=seen, scale=0.5, softcap=None), *inputs)
            return out_BTNH, *pull_back(cotangent_BTNH)

        return both(q, k, v)

    for a, b in zip(value_and_gradients(kernel), value_and_gradients("einsum"), strict=True):
        assert a.shape == b.shape and np.abs(b).max() > 0.5
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("family", ["llama3", "qwen3"])
def test_remat_changes_no_gradient_and_keeps_what_it_promises(family):
    """When this fails, a memory setting changes the result, or a level of remat recomputes what it promises to keep."""
    spec, length = tiny.tiny_spec(family), 256
    graph, _ = abstract_decoder(spec)
    tokens_BT = jnp.asarray(np.random.default_rng(0).integers(0, tiny.V, (1, length)), jnp.int32)
    parameters = tiny.random_parameters(spec)

    def gradient_and_products(remat):
        def loss(parameters):
            decoder = nnx.merge(graph, parameters)
            options = ForwardOptions(remat=remat, kernel="tiles")
            return decoder(tokens_BT, plain_layout(tokens_BT), options=options).sum()

        traced = jax.jit(jax.grad(loss)).trace(parameters)
        return traced.lower().compile()(parameters), str(traced.jaxpr).count("dot_general")

    plain, num_products = gradient_and_products("none")
    again = {"mlp": ("q", "k", "v", "o", "q k", "p v"), "attention": ("o", "gate", "up")}
    again["full"] = ("q", "k", "v", "q k", "p v", "o", "gate", "up")
    for remat, products in again.items():
        gradient, number = gradient_and_products(remat)
        tiny.assert_same_trees(gradient, plain, atol=2e-5)
        assert number - num_products == len(products), remat


def test_each_platform_gets_its_kernel():
    """When this fails, an accelerator holds [T, T] scores per head, or a kernel gets inputs it cannot handle."""
    assert [kernel_for(platform) for platform in ("cpu", "tpu", "gpu", "cuda")] == [
        "tiles",
        "splash",
        "triton",
        "triton",
    ]
    assert kernel_for("tpu", asked="einsum") == "einsum"
    with pytest.raises(
        UserError, match=r"model.attention=triton runs on gpu devices only, and this is a cpu; leave model.att"
    ):
        kernel_for("cpu", asked="triton")
    assert takes("splash", T=384, U=384, H=96) and not takes("splash", T=1, U=384, H=128)
    assert takes("triton", T=384, U=384, H=64) and not takes("triton", T=384, U=384, H=96)
    assert not takes("tiles", T=100, U=100, H=64) and not takes("triton", T=1, U=384, H=64)


def test_tiled_attention_is_as_accurate_as_einsum_in_bfloat16():
    """When this fails, long bfloat16 runs on CPU drift because scores or sums are rounded on the way."""
    random = np.random.default_rng(0)
    q, k, v = (random.normal(size=(B, 256, heads, H)).astype(np.float32) for heads in (N, K, K))
    options = {"mask_BTU": jnp.asarray(random_mask(random, 256, 256)), "scale": 0.25, "softcap": None}
    truth = attend_einsum(*(jnp.asarray(x) for x in (q, k, v)), **options)
    halves = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    tiles, einsum = (
        float(np.abs(np.asarray(jax.jit(partial(kernel, **options))(*halves), np.float32) - truth).max())
        for kernel in (attend_tiles, attend_einsum)
    )
    assert tiles <= 1.5 * einsum and einsum < 0.05


@pytest.mark.slow
def test_a_kernel_from_outside_trains(monkeypatch, tmp_path):
    """When this fails, a new kernel needs edits in configuration, dispatch and plan before it can be tried."""
    calls = []

    def attend_toy(*arrays, **options):
        calls.append(arrays)
        return attend_einsum(*arrays, **options)

    monkeypatch.setitem(KERNELS, "toy", Kernel(attend_toy))
    (tmp_path / "run.yaml").write_text(tiny.RUN)
    model, rows = tiny.write_model(tmp_path / "model"), tiny.write_rows(tmp_path / "rows.jsonl")
    paths = (f"model.path={model}", f"data.path={rows}")
    train = ("train", tmp_path / "run.yaml", *paths, f"run_dir={tmp_path / 'run'}")
    assert tiny.rapo(*train, "model.attention=toy") == 0
    assert calls
    assert tiny.rapo("plan", tmp_path / "run.yaml", *paths, "model.attention=toy", "--devices", "cpu:1") == 0


def test_a_misspelt_kernel_is_refused_with_the_nearest_one():
    with pytest.raises(UserError, match=r"model.attention='tritn' is not a kernel; did you mean 'triton'\?"):
        kernel_for("gpu", asked="tritn")
