"""Decoding with a cache says what the full forward pass says, whoever else is in the batch."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rapo_jax.generate import batches
from rapo_jax.generate import decode as decoding
from rapo_jax.generate.batches import BatchLimits, DecodeBatch, plan_batches
from rapo_jax.generate.decode import Sampling, decode
from rapo_jax.generate.sampling import RowSampling
from rapo_jax.models.attention.layout import Layout
from rapo_jax.models.decoder import Cache, abstract_decoder, plain_layout
from tests import tiny

PROMPTS = [np.random.default_rng(length).integers(0, tiny.V, length).astype(np.int32) for length in (5, 70, 23, 12)]
NUM_NEW = 14


def continuations(spec, prompts, *, sampling, batch_size=4, stop_tokens=()):
    mesh = tiny.mesh_of(1, 1, 1)
    parameters = tiny.on_mesh(tiny.random_parameters(spec), spec, mesh)
    found = decode(
        parameters, spec, prompts, sampling=sampling, stop_tokens=stop_tokens, mesh=mesh, batch_size=batch_size
    )
    return [answer for _, answer in sorted(found, key=lambda pair: pair[0])]


@pytest.mark.parametrize(
    ("family", "chunk"),
    [("mistral-v0.1-window", 256), ("gemma2", 256), ("gemma2", 16), ("gemma3", 16), ("smollm3", 256), ("granite", 256)],
)
def test_greedy_decoding_with_a_cache_is_the_argmax_of_the_full_forward_pass(family, chunk, monkeypatch):
    """When this fails, what is generated is not what was trained: a cache slot, a window or a position is off by one.
    All prompts but one are longer than the window of 8, and in chunks of 16 all but two longer than a chunk."""
    for module in (batches, decoding):
        monkeypatch.setattr(module, "PREFILL_CHUNK", chunk)
    monkeypatch.setattr(batches, "PROMPT_MULTIPLE", min(chunk, 64))
    spec = replace(tiny.tiny_spec(family), tied=False)  # tied weights would repeat one token for ever
    graph, _ = abstract_decoder(spec)
    parameters = jax.device_put(tiny.random_parameters(spec))

    @jax.jit
    def logits(tokens_BT):
        decoder = nnx.merge(graph, parameters)
        return decoder.logits(decoder(tokens_BT, plain_layout(tokens_BT)))

    answers = continuations(spec, PROMPTS, sampling=Sampling(max_new_tokens=NUM_NEW))
    assert len({token for answer in answers for token in answer.tokens}) > 10
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert len(answer.tokens) == NUM_NEW and answer.finish_reason == "length"
        tokens = np.zeros((1, 90), np.int32)  # what follows the end is not seen
        tokens[0, : len(prompt)] = prompt
        for n, token in enumerate(answer.tokens):
            end = len(prompt) + n
            assert token == int(logits(tokens)[0, end - 1].argmax()), f"token {n} after {len(prompt)}"
            tokens[0, end] = token


@pytest.mark.parametrize("family", ["mistral-v0.1-window", "gemma2", "olmo3-yarn", "qwen3", "smollm3"])
def test_hidden_states_through_the_cache_are_those_without_it(family):
    """When this fails, decoding differs from the forward pass, perhaps by less than an argmax shows."""
    spec = tiny.tiny_spec(family)
    decoder = nnx.merge(abstract_decoder(spec)[0], jax.device_put(tiny.random_parameters(spec)))
    tokens_BT = jnp.asarray(np.random.default_rng(0).integers(0, tiny.V, (2, 24)), jnp.int32)
    whole_BTD = jax.jit(lambda t: decoder(t, plain_layout(t)))(tokens_BT)

    @jax.jit
    def extend(tokens, start, cache):
        at = start + jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return decoder.decoding(tokens, Layout(at, at, jnp.ones_like(at), jnp.zeros_like(at)), cache=cache)

    cache = Cache.empty(spec, num_rows=2, num_slots=24, dtype=jnp.float32)
    parts, start = [], 0
    for length in (11, *[1] * 13):
        part, cache = extend(tokens_BT[:, start : start + length], jnp.int32(start), cache)
        parts.append(part)
        start += length
    assert float(jnp.abs(whole_BTD).max()) > 1
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole_BTD, atol=1e-5)


def test_a_sample_depends_on_the_prompts_index_never_on_the_batch():
    """When this fails, an evaluation cannot be repeated with another batch size, or all prompts draw the same numbers."""
    spec = tiny.tiny_spec("mistral-v0.1-window")
    twins = [*PROMPTS, PROMPTS[0]]
    sample = lambda size: [  # noqa: E731
        answer.tokens
        for answer in continuations(
            spec, twins, sampling=Sampling(NUM_NEW, temperature=1.0, top_p=0.9), batch_size=size
        )
    ]
    alone = sample(1)
    assert alone == sample(4)
    assert alone[0] != alone[4], "one prompt asked twice must be answered twice"


def test_a_stop_token_ends_its_own_answer_and_no_other():
    """When this fails, answers run on, or a finished neighbour cuts them short."""
    spec = tiny.tiny_spec("gemma2")
    greedy = Sampling(max_new_tokens=NUM_NEW)
    free = [answer.tokens for answer in continuations(spec, PROMPTS, sampling=greedy)]
    stop = free[1][3]
    stopped = continuations(spec, PROMPTS, sampling=greedy, stop_tokens=[stop])
    for tokens, answer in zip(free, stopped, strict=True):
        ends = tokens.index(stop) if stop in tokens else None
        assert answer.tokens == tokens[:ends]
        assert answer.finish_reason == ("length" if ends is None else "stop")


def test_a_long_prompt_takes_memory_for_its_cache_and_never_for_all_scores():
    """When this fails, one prompt of 4,000 tokens among short ones asks for more memory than the machine has."""
    spec = tiny.tiny_spec("llama3")
    B, T, num_new = 4, 4096, 64
    graph, _ = abstract_decoder(spec)
    parameters = tiny.random_parameters(spec)
    arguments = {"tokens_BT": (B, T), "length_B": (B,)}
    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in arguments.items()}
    rows = RowSampling(*(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in [((B, 2), jnp.uint32), ((B,), jnp.float32)]),
        jax.ShapeDtypeStruct((B,), jnp.float32), jax.ShapeDtypeStruct((B,), jnp.int32))  # fmt: skip
    prefill = functools.partial(
        decoding._prefill, graph, drawing=decoding.Drawing(num_new, "greedy", jnp.dtype("float32"))
    )
    lowered = jax.jit(prefill).lower(parameters, jax.ShapeDtypeStruct((1,), jnp.int32), *shapes.values(), rows)
    scores, cache = B * spec.N * T * T * 4, 2 * spec.L * B * (T + num_new) * spec.K * spec.H * 4
    used = lowered.compile().memory_analysis().temp_size_in_bytes
    assert used < scores / 4 and used < 8 * cache + scores * batches.PREFILL_CHUNK / T * 3


def test_batches_hold_prompts_of_like_length_and_a_budget_of_tokens():
    """When this fails, short prompts are computed at the length of the longest, or a batch of long ones is too large."""
    plan = lambda lengths, **more: list(  # noqa: E731
        plan_batches(lengths, **{"max_new_tokens": 100, "limits": BatchLimits(4, 3000), "row_shards": 1} | more)
    )
    assert plan([30, 1200, 60, 65, 40, 700, 10]) == [
        DecodeBatch((1, 5), 2, 1280),
        DecodeBatch((3, 2, 4, 0), 4, 128),
        DecodeBatch((6,), 4, 64),
    ]
    assert plan([4000, 4000]) == [DecodeBatch((0,), 1, 4096), DecodeBatch((1,), 1, 4096)]
    assert plan([4000, 9], row_shards=2) == [DecodeBatch((0,), 2, 4096), DecodeBatch((1,), 2, 64)]
    assert plan([9] * 5, row_shards=8) == [DecodeBatch((0, 1, 2, 3, 4), 8, 64)]


def test_rows_of_one_batch_are_drawn_each_with_its_own_settings():
    """When this fails, a row's temperature, limit or seed becomes that of its neighbours."""
    spec = tiny.tiny_spec("mistral-v0.1-window")
    settings = [
        Sampling(NUM_NEW),
        Sampling(NUM_NEW, temperature=1.0, seed=7),
        Sampling(3, temperature=0.7, top_p=0.9),
        Sampling(5, seed=1),
    ]
    mesh = tiny.mesh_of(1, 1, 1)
    parameters = tiny.on_mesh(tiny.random_parameters(spec), spec, mesh)
    asked = [(*each, (index, 0)) for index, each in enumerate(zip(PROMPTS, settings, strict=True))]
    together = decoding.decode_segments(
        parameters, spec, asked, stop_tokens=[], mesh=mesh, dtype="float32", limits=BatchLimits(4)
    )
    found = dict(pair for segment in together for pair in segment.finished)
    assert [len(found[index].tokens) for index in range(4)] == [NUM_NEW, NUM_NEW, 3, 5]
    for index, sampling in enumerate(settings):
        assert found[index] == continuations(spec, PROMPTS, sampling=sampling)[index]
