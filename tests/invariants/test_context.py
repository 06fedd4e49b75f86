"""A row whose tokens are split over devices gives what it gives on one device."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rapo_jax.batching.batch_plan import make_plan, materialise
from rapo_jax.batching.dealing import block_of, dealt_order
from rapo_jax.batching.splitting import MICROBATCH_TOKENS
from rapo_jax.batching.visibility import visible_tiles_of_row
from rapo_jax.errors import UserError
from rapo_jax.models.attention.dispatch import KERNELS, attend, visible
from rapo_jax.models.attention.layout import Layout, sees
from rapo_jax.parallel import num_row_shards, sharding
from rapo_jax.passes.column import Column
from rapo_jax.passes.forward_pass import Weights, fill, pass_options
from tests import tiny
from tests.invariants.test_attention_kernels import FUSED, random_mask

GROUPS = tiny.random_groups(16, prompt=(9, 50))
LONG = tiny.random_groups(8, seed=4, prompt=(60, 80), response=(90, 100))
CONFIG = tiny.tiny_config(train={"batch_size": 8})


def step_of(family, sizes, *, row_length, groups=GROUPS, lora=False, **rows):
    config, spec = tiny.with_lora(CONFIG, family) if lora else (CONFIG, tiny.tiny_spec(family))
    config = replace(config, rows=replace(config.rows, **rows))
    return tiny.train_steps(config, spec, tiny.mesh_of(*sizes), groups, num_steps=1, row_length=row_length)


def assert_same_step(one, other):
    tiny.assert_same_metrics(one.metrics, other.metrics, atol=2e-6, rtol=1e-5)
    tiny.assert_same_trees(one.state.parameters, other.state.parameters, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "sizes", "lora"),
    [
        pytest.param("llama3", (1, 2, 2, 2), False, id="llama3, fsdp=2 tensor=2 context=2"),
        pytest.param(
            "gemma2", (1, 2, 1, 3), False, id="gemma2 windows and soft-caps, fsdp=2 context=3, which does not divide D"
        ),
        pytest.param("qwen3", (2, 1, 1, 4), False, id="qwen3 norms of heads, data=2 context=4"),
        pytest.param("olmo2", (1, 1, 2, 4), False, id="olmo2 norms over split heads, tensor=2 context=4"),
        pytest.param(
            "phi3-longrope", (1, 2, 2, 2), False, id="longrope, which reads lengths, fsdp=2 tensor=2 context=2"
        ),
        pytest.param("llama3", (1, 2, 2, 2), True, id="llama3 adapters, fsdp=2 tensor=2 context=2"),
    ],
)
def test_devices_that_share_rows_take_the_step_of_one_device(family, sizes, lora):
    """When this fails, a token does not see a key on another device, or the gradient of a key is lost on the way back."""
    length = 128 * sizes[-1]
    alone = step_of(family, (1, 1, 1, 1), row_length=length, lora=lora)
    assert_same_step(alone, step_of(family, sizes, row_length=length, lora=lora))


@pytest.mark.slow
def test_groups_may_be_split_over_rows_that_devices_share():
    """When this fails, a response in another row is summed at the wrong place, because its tokens were dealt."""
    parts = step_of("llama3", (1, 2, 2, 2), row_length=256, groups=LONG, split="always", per_shard=4)
    whole = step_of("llama3", (1, 1, 1, 1), row_length=512, groups=LONG)
    assert max(group.num_tokens for group in LONG) > 256
    tiny.assert_same_metrics(whole.metrics, parts.metrics, atol=5e-6, rtol=3e-5)
    tiny.assert_same_trees(whole.state.parameters, parts.state.parameters, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("scored", ["prompt_too", "last"])
def test_a_pass_over_rows_that_devices_share_gives_the_numbers_of_one_device(scored, tmp_path):
    """When this fails, a cached reference or a score depends on the mesh that computed it."""
    spec = replace(tiny.tiny_spec("gemma2"), scored=scored == "last")
    parameters, known = tiny.random_parameters(spec), []
    for sizes in ((1, 1, 1, 1), (1, 2, 1, 4)):
        mesh = tiny.mesh_of(*sizes)
        options = pass_options(tiny.tiny_config(), spec, mesh, scored=scored)
        column = Column(tmp_path, str(num_row_shards(mesh)), shape=(len(GROUPS), 3), identity={})
        column.open()
        weights = Weights(spec, tiny.on_mesh(parameters, spec, mesh), mesh)
        needed = np.arange(len(GROUPS))
        known.append(fill(weights, GROUPS, options, column=column, needed=needed, said=scored, place=tmp_path))
    assert np.abs(known[0][:, 1:]).min() > 1e-3
    np.testing.assert_allclose(known[1], known[0], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kernel", ["einsum", "tiles", pytest.param("splash", marks=pytest.mark.slow), "triton"])
def test_every_kernel_attends_with_queries_on_several_devices(kernel, monkeypatch):
    """When this fails, a kernel visits the tiles that another device's queries see, or einsum replaces it unsaid."""
    monkeypatch.setitem(KERNELS, kernel, replace(KERNELS[kernel], attend=FUSED.get(kernel, KERNELS[kernel].attend)))
    T, N, K, H, random = 256, 4, 2, 16, np.random.default_rng(0)
    q, k, v, cotangent_BTNH = (random.normal(size=(2, T, heads, H)).astype(np.float32) for heads in (N, K, K, N))
    mask_BTT = jnp.asarray(random_mask(random, T, T))

    def value_and_gradients(name, mesh):
        @jax.jit
        def both(*inputs):
            seen = visible(mask_BTT, kernel=name, H=H)
            assert (seen.kernel, seen.shards) == (name, mesh.shape["context"])
            out_BTNH, pull_back = jax.vjp(functools.partial(attend, visible=seen, scale=0.5, softcap=2.0), *inputs)
            return out_BTNH, *pull_back(cotangent_BTNH)

        with jax.set_mesh(mesh):
            return jax.device_get(both(q, k, v))

    expected = value_and_gradients("einsum", tiny.mesh_of(1, 1, 1))
    for a, b in zip(value_and_gradients(kernel, tiny.mesh_of(1, 2, 2, 2)), expected, strict=True):
        assert np.abs(b).max() > 0.5
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_rows_are_dealt_so_that_every_device_has_as_many_visible_tiles():
    """When this fails, one chip does most of the attention and all others wait for it. A prompt of 600 tokens with
    responses of 300 and 900, and 248 of padding, in tiles of 128 on four devices."""
    position = np.concatenate([np.arange(600), np.arange(600, 900), np.arange(600, 1500), np.zeros(248)]).astype(
        np.int32
    )
    group = np.repeat([1, 0], [1800, 248]).astype(np.int32)
    branch = np.repeat([0, 1, 2, 0], [600, 300, 900, 248]).astype(np.int32)
    order = dealt_order(position, group, branch, num_shards=4)
    assert sorted(order) == list(range(2048))

    def tiles_by_shard(order):
        index = np.where(group > 0, position, 2048 + np.arange(2048))
        layout = Layout(*(jnp.asarray(x[order][None]) for x in (index, position, group, branch)))
        return np.asarray(sees(layout, layout)).reshape(4, 4, 128, 16, 128).any((2, 4)).sum((1, 2)).tolist()

    assert tiles_by_shard(np.arange(2048)) == [10, 26, 34, 37]
    assert tiles_by_shard(order) == [27, 27, 27, 26]


@pytest.mark.parametrize(
    ("T", "num_shards"),
    [(30208, 4), (8704, 4), (20224, 2), (33280, 4), (15360, 4), (1024, 8), (32768, 4)],
)
def test_tiles_of_dealt_tokens_hold_neighbours(T, num_shards):
    """When this fails, blocks are smaller than a tile, whose tokens then come from all over the row: with a window, kernels
    visit several times as many tiles."""
    group, branch = np.ones(T, np.int32), np.zeros(T, np.int32)
    position, size = np.arange(T, dtype=np.int32), block_of(T, num_shards)
    assert size >= 128 and T // num_shards % size == 0
    order = dealt_order(position, group, branch, num_shards=num_shards)
    tiles = [
        visible_tiles_of_row(position[at], group, branch, tile=(128, 128), window=1024) for at in (np.arange(T), order)
    ]
    assert tiles[1].sum() == tiles[0].sum()
    if T // num_shards >= 512:
        every = visible_tiles_of_row(position[order], group, branch, tile=(128, 128)).reshape(num_shards, -1).sum(1)
        assert np.ptp(every) < 0.02 * every.mean()


def test_a_dimension_that_context_does_not_divide_is_split_without_it():
    """When this fails, six devices hold the whole model each, and nothing says so."""
    mesh, spec = tiny.mesh_of(1, 2, 1, context=3), PartitionSpec
    assert sharding(mesh, "DF", (4096, 16)).spec == spec("fsdp", "tensor")
    assert sharding(mesh, "DF", (4098, 16)).spec == spec(("fsdp", "context"), "tensor")
    assert sharding(mesh, "DF", (4097, 16)).spec == spec(None, "tensor")
    assert sharding(mesh, "BT", (3, 9)).spec == spec(None, "context")


def test_dealt_tokens_keep_what_they_see_and_predict():
    """When this fails, a hidden state is read at another token than the one before its target."""
    limits = {"row_length": 256, "rows_per_shard": 1, "num_row_shards": 4}
    plain, dealt = (
        make_plan(GROUPS, [np.arange(16)], **limits, context=context, scored="responses", split="never")
        for context in (1, 2)
    )
    rows = plain.steps[0]
    assert rows == dealt.steps[0] and dealt.shape.S % 16 == 0
    one, other = (materialise(GROUPS, rows, plan.shape, mine=range(4)) for plan in (plain, dealt))
    assert (one.tokens != other.tokens).any()
    for name in ("tokens", "position", "group", "branch"):
        read = [np.take_along_axis(getattr(batch, name), batch.source, axis=2) for batch in (one, other)]
        scored = one.slot < plain.shape.P * plain.shape.A
        assert (read[0][scored] == read[1][..., : plain.shape.S][scored]).all(), name
        assert (np.sort(getattr(one, name)) == np.sort(getattr(other, name))).all()


def test_row_lengths_are_multiples_of_what_devices_that_share_rows_take():
    """When this fails, a chosen length cannot be split, or a given one is changed or falls to the slowest kernel unsaid."""
    limits = {"rows_per_shard": None, "num_row_shards": 1, "context": 4}
    chosen = make_plan(GROUPS, [np.arange(16)], row_length=None, **limits).shape
    assert chosen.T % 512 == 0 and chosen.B * chosen.T <= 4 * MICROBATCH_TOKENS
    assert make_plan(LONG, [np.arange(8)], row_length=None, split="always", **limits).shape.T % 512 == 0
    assert any(group.num_tokens > 256 for group in LONG)
    limits["context"] = 2
    with pytest.raises(UserError, match=r"not fit rows of 256 tokens.* Raise rows.length to 512,"):
        make_plan(LONG, [np.arange(8)], row_length=256, **limits)
    limits["context"] = 4
    with pytest.raises(UserError, match=r"rows.length=1000 .* mesh.context=4 .* set rows.length=1024, or leave it out"):
        make_plan(GROUPS, [np.arange(16)], row_length=1000, **limits)
