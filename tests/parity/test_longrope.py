"""Ropes that depend on the length of a sequence, where lengths differ: in rows of several sequences and in generation.

transformers asks for the longest sequence of a call. So a row's group is what it computes from the group's sequences as one
batch, and an answer is what it generates for a prompt alone.
"""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from rapo_jax.generate.batches import BatchLimits
from rapo_jax.generate.decode import Sampling, decode
from rapo_jax.generate.engine import Question
from rapo_jax.generate.own import OwnEngine
from rapo_jax.models.attention.layout import Layout
from rapo_jax.models.decoder import abstract_decoder
from rapo_jax.models.files import load_parameters
from rapo_jax.models.spec import read_config, spec_from_config
from rapo_jax.parallel import make_mesh
from tests.parity.test_transformers import random_checkpoint
from tests.tiny.families import FAMILIES

BOUNDARY = {"phi3-longrope": 24, "llama-dynamic-rope": 16}
NUM_NEW = 30


@functools.cache
def opened(family: str, directory):
    """transformers' model, our spec and parameters."""
    config = FAMILIES[family] | {"tie_word_embeddings": False}  # tied weights would repeat one token for ever
    model = random_checkpoint(config, directory)
    spec = spec_from_config(read_config(directory))
    return model, spec, load_parameters(directory, spec, mesh=make_mesh(fsdp=-1))


@pytest.fixture(params=BOUNDARY)
def both(request, tmp_path_factory):
    place = tmp_path_factory.getbasetemp() / request.param
    place.mkdir(exist_ok=True)
    return (*opened(request.param, place), BOUNDARY[request.param])


def group_of(prompt: int, *responses: int, random) -> list[np.ndarray]:
    """A prompt and its responses, as token ids."""
    return [random.integers(1, 96, length) for length in (prompt, *responses)]


def row_of(groups: list[list[np.ndarray]], length: int) -> tuple[np.ndarray, Layout]:
    """One packed row: prompts once, followed by their responses; padded at the end."""
    tokens, position, group, branch = [], [], [], []
    for number, (prompt, *responses) in enumerate(groups, 1):
        for which, part in enumerate([prompt, *responses]):
            start = len(prompt) if which else 0
            tokens += part.tolist()
            position += range(start, start + len(part))
            group += [number] * len(part)
            branch += [which] * len(part)
    fill = lambda values: np.array([values + [0] * (length - len(values))], np.int32)  # noqa: E731
    index = np.arange(length, dtype=np.int32)[None]
    return fill(tokens), Layout(*map(jnp.asarray, (index, fill(position), fill(group), fill(branch))))


def their_responses(model, group: list[np.ndarray]) -> np.ndarray:
    """transformers' logits of a group's responses one after another, from one batch padded on the right."""
    prompt, *responses = group
    rows = [np.concatenate([prompt, each]) for each in responses]
    longest = max(map(len, rows))
    tokens = torch.tensor(np.stack([np.pad(row, (0, longest - len(row))) for row in rows]))
    mask = torch.tensor(np.stack([np.arange(longest) < len(row) for row in rows])).long()
    with torch.no_grad():
        logits = fresh(model)(tokens, attention_mask=mask).logits.numpy()
    return np.concatenate([logits[at, len(prompt) : len(row)] for at, row in enumerate(rows)])


def fresh(model):
    """The model without what its rotary embedding remembers of earlier calls."""
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model


def test_a_packed_row_turns_each_group_by_its_own_longest_sequence(both):
    """When this fails, a long conversation changes the loss of a short one that shares its row, or its own is wrong."""
    model, spec, parameters, boundary = both
    random = np.random.default_rng(0)
    group = functools.partial(group_of, random=random)
    groups = [
        group(boundary - 8, 8, 3),  # up to the boundary
        group(boundary - 8, 9, 9),  # one token beyond it
        group(boundary + 2, 11, 2),  # the prompt alone is beyond it
        group(boundary - 9, 4, 20),  # one response of each kind
    ]
    tokens, layout = row_of(groups, 200)
    decoder = nnx.merge(abstract_decoder(spec)[0], parameters)
    ours = np.asarray(jax.jit(lambda t, at: decoder.logits(decoder(t, at)))(jnp.asarray(tokens), layout))[0]
    for number, each in enumerate(groups, 1):
        mine = ours[np.asarray((layout.group == number) & (layout.branch > 0))[0]]
        theirs = their_responses(model, each)
        assert np.abs(theirs).max() > 1
        np.testing.assert_allclose(mine, theirs, atol=1e-4, err_msg=f"group {number}")
    alone = their_responses(model, [groups[3][0], groups[3][1]])
    assert np.abs(alone - their_responses(model, groups[3])[: len(alone)]).max() > 1e-3, "the longer one decides"


def answers(spec, parameters, prompts, *, sampling, batch_size=4, stop_tokens=()):
    found = decode(
        parameters, spec, prompts, sampling=sampling, stop_tokens=stop_tokens, mesh=make_mesh(fsdp=-1), batch_size=batch_size
    )  # fmt: skip
    return [answer for _, answer in sorted(found, key=lambda pair: pair[0])]


def test_generation_across_the_boundary_is_transformers_token_by_token(both):
    """When this fails, an answer falls apart where its conversation grows beyond the original context."""
    model, spec, parameters, boundary = both
    random = np.random.default_rng(1)
    prompts = [
        random.integers(1, 96, length).astype(np.int32) for length in (5, boundary - 1, boundary, boundary + 1, 40)
    ]
    ours = answers(spec, parameters, prompts, sampling=Sampling(NUM_NEW), batch_size=3)
    model.generation_config.eos_token_id = None
    for prompt, answer in zip(prompts, ours, strict=True):
        tokens = torch.tensor(prompt[None], dtype=torch.long)
        options = {"do_sample": False, "max_new_tokens": NUM_NEW, "attention_mask": torch.ones_like(tokens)}
        theirs = fresh(model).generate(tokens, **options)[0, len(prompt) :].tolist()
        assert answer.tokens == theirs, f"prompt of {len(prompt)}"
        assert answer.finish_reason == "length"
    assert len({token for answer in ours for token in answer.tokens}) > 20


def test_answers_that_cross_the_boundary_keep_their_seeds_stops_and_limits(tmp_path):
    """When this fails, an answer that begins anew in the middle draws its first random numbers again, or forgets its stop."""
    _, spec, parameters = opened("phi3-longrope", tmp_path)
    random = np.random.default_rng(2)
    prompts = [random.integers(1, 96, length).astype(np.int32) for length in (5, 20, 30, 22)]
    sampling = Sampling(NUM_NEW, temperature=1.0, top_p=0.9, seed=3)
    drawn = answers(spec, parameters, prompts, sampling=sampling)
    assert drawn == answers(spec, parameters, prompts, sampling=sampling, batch_size=1)
    assert all(len(answer.tokens) == NUM_NEW for answer in drawn)
    never = replace(spec, rope=replace(spec.rope, original_max_positions=4096))  # no boundary: the same random numbers
    calm = replace(never, rope=replace(never.rope, long_factors=never.rope.short_factors, attention_factor=1.0))
    turned = replace(calm, rope=replace(calm.rope, original_max_positions=24))
    assert answers(turned, parameters, prompts, sampling=sampling) == answers(
        calm, parameters, prompts, sampling=sampling
    )
    words = lambda tokens: "".join(f"{token:02}," for token in tokens)  # noqa: E731
    said = answers(calm, parameters, prompts, sampling=replace(sampling, repetition_penalty=1.3))[1].tokens
    settings = replace(sampling, repetition_penalty=1.3, stop=(words(said[22:24]),), logps=True)
    asked = [Question(index, tokens, settings) for index, tokens in enumerate(prompts)]
    begun_anew, at_once = (
        {sample.prompt: sample for each in engine.sample(asked, num_samples=1) for sample in each.samples}
        for of in (turned, calm)
        for engine in [OwnEngine(parameters, of, make_mesh(fsdp=-1), jnp.dtype("float32"), (), BatchLimits(4), words)]
    )
    assert at_once[1].tokens == said[:24] and at_once[1].text == words(said[:22])
    for index, sample in at_once.items():
        assert replace(begun_anew[index], logps=None) == replace(sample, logps=None)
        np.testing.assert_allclose(np.array(begun_anew[index].logps), np.array(sample.logps), atol=1e-5)
        assert len(np.array(sample.logps)) == len(sample.tokens)
    stop = drawn[1].tokens[12]
    stopped = answers(spec, parameters, prompts, sampling=sampling, stop_tokens=[stop])
    for whole, cut in zip(drawn, stopped, strict=True):
        ends = whole.tokens.index(stop) if stop in whole.tokens else None
        assert (cut.tokens, cut.finish_reason) == (whole.tokens[:ends], "length" if ends is None else "stop")
    for limit in (4, 5, 6):
        assert [
            a.tokens for a in answers(spec, parameters, prompts, sampling=replace(sampling, max_new_tokens=limit))
        ] == [a.tokens[:limit] for a in drawn]
