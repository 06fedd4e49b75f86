"""Decoding with a cache says what the full forward pass says, whoever else is in the batch."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rapo_jax.generate.decode import Sampling, decode
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


@pytest.mark.parametrize("family", ["mistral-v0.1-window", "gemma2"])
def test_greedy_decoding_with_a_cache_is_the_argmax_of_the_full_forward_pass(family):
    """When this fails, what is generated is not what was trained: a cache slot, a window or a position is off by one.
    All prompts but one are longer than the window of 8."""
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


@pytest.mark.parametrize("family", ["mistral-v0.1-window", "gemma2"])
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
