"""Decoding with a cache says what the full forward pass says, whoever else is in the batch."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rapo_jax.generate import batches, slots
from rapo_jax.generate.batches import BatchLimits
from rapo_jax.generate.engine import Question
from rapo_jax.generate.own import OwnEngine
from rapo_jax.generate.sampling import Sampling
from rapo_jax.models.attention.layout import Layout
from rapo_jax.models.cache import SlotCache, by_tiles, one_by_one, summed_values
from rapo_jax.models.decoder import Cache, abstract_decoder, plain_layout
from tests import tiny

PROMPTS = [np.random.default_rng(length).integers(0, tiny.V, length).astype(np.int32) for length in (5, 70, 23, 12)]
NUM_NEW = 19  # more than a segment of the engine


def engine_of(spec, limits, *, stop_tokens=()):
    mesh = tiny.mesh_of(1, 1, 1)
    parameters = tiny.on_mesh(tiny.random_parameters(spec), spec, mesh)
    return OwnEngine(parameters, spec, mesh, jnp.dtype("float32"), stop_tokens, limits)


def samples_of(engine, questions, *, num_samples=1, known=()):
    drawn = engine.sample(questions, num_samples=num_samples, known=known)
    samples = [sample for each in drawn for sample in each.samples]
    assert len({sample.key for sample in samples}) == len(samples)
    return {sample.key: sample for sample in samples}


def continuations(spec, prompts, *, sampling, stop_tokens=()):
    asked = [Question(index, tokens, sampling) for index, tokens in enumerate(prompts)]
    found = samples_of(engine_of(spec, BatchLimits(3), stop_tokens=stop_tokens), asked)
    return [found[index, 0] for index in range(len(prompts))]


@pytest.mark.parametrize(
    ("family", "chunk"),
    [("mistral-v0.1-window", 256), ("gemma2", 256), ("gemma2", 16), ("gemma3", 16), ("smollm3", 256), ("granite", 256)],
)
def test_greedy_decoding_with_a_cache_is_the_argmax_of_the_full_forward_pass(family, chunk, monkeypatch):
    """When this fails, what is generated is not what was trained: a cache slot, a window or a position is off by one.
    All prompts but one are longer than the window of 8, and in chunks of 16 all but two longer than a chunk. Four prompts
    are more than there are slots, and the answers go over two segments."""
    monkeypatch.setattr(batches, "PREFILL_CHUNK", chunk)
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
        tokens = np.zeros((1, 96), np.int32)  # what follows the end is not seen
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


def test_a_sample_depends_on_its_prompt_and_number_never_on_the_others():
    """When this fails, an evaluation cannot be repeated with more prompts or in the middle, a refilled slot sees what was there
    before, or all prompts draw the same numbers. Three slots for ten samples, bit for bit those of the prompt alone."""
    sampling = Sampling(NUM_NEW + 20, temperature=1.0, top_p=0.9)
    twins = [Question(index, tokens, sampling) for index, tokens in enumerate([*PROMPTS, PROMPTS[0]])]
    engine = engine_of(tiny.tiny_spec("mistral-v0.1-window"), BatchLimits(3))
    together = samples_of(engine, twins, num_samples=2)
    assert {key: together[key] for key in [(1, 0), (1, 1)]} == samples_of(engine, twins[1:2], num_samples=2)
    known = [key for key in together if key not in [(0, 1), (3, 0)]]
    assert samples_of(engine, twins, num_samples=2, known=known) == {key: together[key] for key in [(0, 1), (3, 0)]}
    assert len({tuple(sample.tokens) for sample in together.values()}) == 10


@pytest.mark.parametrize("family", ["mistral-v0.1-window", "gemma2"])
def test_what_a_token_attends_to_does_not_depend_on_the_room_behind_it(family):
    """When this fails, a sample depends on how long its companions are. Bit for bit, whatever stands in the room."""
    spec, B, S, random = tiny.tiny_spec(family), 3, 16, np.random.default_rng(0)
    array = lambda *shape: jnp.asarray(random.standard_normal(shape), jnp.float32)  # noqa: E731
    k, v, last = array(B, spec.K, spec.H, 512), array(B, spec.K, 512, spec.H), array(B, spec.K, S, spec.H)
    q, new = array(B, 1, spec.N, spec.H), array(B, 1, spec.K, spec.H)

    @functools.partial(jax.jit, static_argnames="room")
    def attended(k, v, *, room):
        cache = SlotCache(k[..., :room], v[:, :, :room], last, last, jnp.array([64, 40, 1]), jnp.int32(5))
        return cache.attend(
            q, new, new, queries=plain_layout(jnp.zeros((B, 1), jnp.int32)), seen=None, window=999, spec=spec
        )[0]

    first = attended(k, v, room=64)
    assert float(jnp.abs(first).max()) > 0.1
    for room in (128, 192, 256, 512):
        np.testing.assert_array_equal(first, attended(k, v, room=room))


def test_by_tiles_and_one_by_one_are_one_sum():
    """When this fails, an accelerator attends to other values than a CPU."""
    random = np.random.default_rng(1)
    weight, value = (
        jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in ((2, 3, 2, 192), (2, 3, 192, 8))
    )
    expected = np.einsum("bkgu,bkuh->bkgh", *(np.asarray(each, np.float64) for each in (weight, value)))
    for summed in (one_by_one, by_tiles, summed_values):
        np.testing.assert_allclose(summed(weight, value), expected, atol=1e-4)


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
    B, T = 4, 4096
    graph, _ = abstract_decoder(spec)
    parameters = tiny.random_parameters(spec)
    shapes = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((B, T), (B,))]
    prefill = functools.partial(slots.prefill, graph, dtype=jnp.dtype("float32"))
    lowered = jax.jit(prefill).lower(parameters, *shapes)
    scores, cache = B * spec.N * T * T * 4, 2 * spec.L * B * T * spec.K * spec.H * 4
    used = lowered.compile().memory_analysis().temp_size_in_bytes
    assert used < scores / 4 and used < 8 * cache + scores * batches.PREFILL_CHUNK / T * 3


def test_slots_are_as_many_as_a_budget_of_tokens_allows_whoever_else_is_there():
    """When this fails, a long prompt needs more memory than there is, or a mesh gets rows that it cannot split."""
    limits = BatchLimits(16, 16384)
    slots_of = lambda room, num, shards=1: limits.num_slots(room, num_samples=num, row_shards=shards)  # noqa: E731
    assert [slots_of(256, num) for num in (1, 8, 9, 500)] == [8, 8, 16, 16]
    assert [slots_of(room, 500) for room in (1024, 4096, 32768)] == [16, 4, 1]
    assert [slots_of(room, 500, 8) for room in (64, 1024, 32768)] == [16, 16, 8]
    assert [BatchLimits(3).num_slots(64, num_samples=9, row_shards=shards) for shards in (1, 2)] == [3, 4]


def test_rows_of_one_batch_are_drawn_each_with_its_own_settings():
    """When this fails, a row's temperature, limit or seed becomes that of its neighbours."""
    spec = tiny.tiny_spec("mistral-v0.1-window")
    settings = [
        Sampling(NUM_NEW),
        Sampling(NUM_NEW, temperature=1.0, seed=7),
        Sampling(3, temperature=0.7, top_p=0.9),
        Sampling(5, seed=1),
    ]
    asked = [Question(index, *each) for index, each in enumerate(zip(PROMPTS, settings, strict=True))]
    found = samples_of(engine_of(spec, BatchLimits(4)), asked)
    assert [len(found[index, 0].tokens) for index in range(4)] == [NUM_NEW, NUM_NEW, 3, 5]
    for index, question in enumerate(asked):
        assert samples_of(engine_of(spec, BatchLimits(1)), [question]) == {(index, 0): found[index, 0]}
