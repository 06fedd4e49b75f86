"""Settings of sampling: what is drawn has the distribution that they describe, and what is told of it is the model's own."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from scipy.stats import chi2

from rapo_jax.generate.batches import BatchLimits
from rapo_jax.generate.decode import answer_tokens
from rapo_jax.generate.engine import Question
from rapo_jax.generate.own import OwnEngine
from rapo_jax.generate.sampling import Method, Sampling, draw, in_top, method_of, row_sampling, stopped_at
from rapo_jax.models.decoder import abstract_decoder, plain_layout
from rapo_jax.opened import answer_text, open_model
from tests.parity import trajectory
from tests.parity.test_peft import base_model

NUM_DRAWN = 50_000
FALSE_ALARM = 1e-9
LOGITS = np.array([2.0, 1.9, 1.5, 1.2, 1.0, 0.7, 0.4, 0.1, -0.2, -0.4, -0.9, -1.3, -1.8, -2.2, -2.6, -3.0], np.float32)
HELD = np.arange(len(LOGITS)) % 3 == 0  # the most probable token among them, and some whose logit is negative
SETTINGS = {
    "temperature": {"temperature": 0.7},
    "hot": {"temperature": 1.8},
    "top-k": {"top_k": 5},
    "top-k of more than there are": {"top_k": 99},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.2},
    "repetition penalty": {"repetition_penalty": 1.7},
    "a reward of repetition": {"repetition_penalty": 0.6},
    "top-p of the top k": {"top_k": 6, "top_p": 0.8},
    "min-p of what top-p left": {"top_p": 0.87, "min_p": 0.2},
    "all": {"temperature": 1.4, "top_k": 11, "top_p": 0.9, "min_p": 0.15, "repetition_penalty": 1.3},
}


def penalized(logits: np.ndarray, held: np.ndarray, penalty: float) -> np.ndarray:
    return np.array([x if not h else x / penalty if x > 0 else x * penalty for x, h in zip(logits, held, strict=True)])


def exact(sampling: Sampling, *, floor_first: bool = False) -> np.ndarray:
    """The probabilities of the tokens, step by step as transformers' processors; floor_first: as vLLM's."""
    x = penalized(LOGITS.astype(np.float64), HELD, sampling.repetition_penalty) / sampling.temperature
    p = np.exp(x) / np.exp(x).sum()
    if floor_first:
        p = above_floor(p, sampling.min_p)
    if sampling.top_k:
        p = kept(p, np.argsort(-p)[: sampling.top_k])
    order, total, number = np.argsort(-p), 0.0, 0
    while total < sampling.top_p and number < len(p):
        total, number = total + p[order[number]], number + 1
    p = kept(p, order[:number]) if sampling.top_p < 1 else p
    return p if floor_first else above_floor(p, sampling.min_p)


def kept(p: np.ndarray, which: np.ndarray) -> np.ndarray:
    left = np.zeros_like(p)
    left[which] = p[which]
    return left / left.sum()


def above_floor(p: np.ndarray, min_p: float) -> np.ndarray:
    return kept(p, np.flatnonzero(p >= min_p * p.max()))


def draws(settings: list[Sampling], method: Method) -> list[np.ndarray]:
    """NUM_DRAWN tokens for each of these, in one batch."""
    number = len(settings) * NUM_DRAWN
    keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(17), number)))
    rows = row_sampling(settings, list(keys[: len(settings)]), limits=[1] * len(settings), earlier=[0] * len(settings))
    rows = jax.tree.map(lambda x: np.repeat(x, NUM_DRAWN, axis=0), rows)
    rows = replace(rows, keys_B2=keys, drawn_B=np.arange(number, dtype=np.int32) % 7)
    logits, held = (jnp.broadcast_to(x, (number, len(x))) for x in (LOGITS, HELD))
    drawn = jax.jit(draw, static_argnames="method")(logits, rows, method=method, held_BV=held)
    return np.split(np.asarray(drawn), len(settings))


@pytest.fixture(scope="module")
def drawn_together() -> dict[str, np.ndarray]:
    settings = [Sampling(**{"temperature": 1.0} | options) for options in SETTINGS.values()]
    return dict(zip(SETTINGS, draws(settings, method_of(settings)), strict=True))


@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_are_drawn_with_the_probabilities_that_the_settings_describe(name, drawn_together):
    """When this fails, a setting cuts too much, too little or in another order than that of transformers, or rows of a batch
    get each other's. A sound sampler fails in one of 10^9 seeds."""
    expected = exact(Sampling(**{"temperature": 1.0} | SETTINGS[name]))
    counts = np.bincount(drawn_together[name], minlength=len(LOGITS))
    assert not counts[expected == 0].any()
    possible, expected = counts[expected > 0], expected[expected > 0] * NUM_DRAWN
    statistic = ((possible - expected) ** 2 / expected).sum()
    assert expected.min() > 5 and statistic < chi2.isf(FALSE_ALARM, len(expected) - 1)


def test_what_is_kept_of_a_vocabulary_is_what_a_sort_says():
    """When this fails, the search for the last token that is kept is off by one, loses ties or the padding is counted."""
    random = np.random.default_rng(3)
    logits = random.normal(0, 4, (64, 1001)).astype(np.float32)
    logits[:, 1:300] = logits[:, 500:799]  # every number of these twice
    logits[:8] = 0.0
    rows = [Sampling(1, 1.0, float(p), top_k=int(k)) for p, k in zip(random.uniform(0, 1, 64), random.integers(0, 1200, 64), strict=True)]  # fmt: skip
    rows[0], rows[8], rows[9] = Sampling(1, 1.0, 1e-6), Sampling(1, 1.0, top_k=1), Sampling(1, 1.0)
    settings = row_sampling(rows, [np.zeros(2, np.uint32)] * 64, limits=[1] * 64, earlier=[0] * 64)
    found = np.asarray(jax.jit(in_top, static_argnames="method")(logits, settings, method=method_of(rows)))
    for row, each, kept in zip(rows, logits.astype(np.float64), found, strict=True):
        falling = np.sort(each)[::-1]
        falling = falling[falling >= falling[min(row.top_k or 1001, 1001) - 1]]
        p = np.exp(falling - falling[0]) / np.exp(falling - falling[0]).sum()
        number = 1001 if row.top_p == 1 else np.searchsorted(np.cumsum(p), row.top_p) + 1
        np.testing.assert_array_equal(kept, each >= falling[min(number, len(falling)) - 1])


def test_the_order_of_top_p_and_min_p_decides_what_is_kept():
    """When this fails, the test above would not notice if the two changed places."""
    sampling = Sampling(temperature=1.0, **SETTINGS["min-p of what top-p left"])
    assert (exact(sampling) > 0).sum() != (exact(sampling, floor_first=True) > 0).sum()


def test_settings_that_are_off_leave_a_seed_its_tokens(drawn_together):
    """When this fails, an answer depends on the settings of other rows, or an old seed gives another one than it gave."""
    plain, nucleus = Sampling(temperature=1.0), Sampling(temperature=1.0, top_p=0.8)
    everything = Method(True, True, True, True, True, True)
    for sampling in (plain, nucleus):
        (alone,), among = draws([sampling], method_of([sampling])), draws([sampling, Sampling(1)], everything)
        np.testing.assert_array_equal(alone, among[0])
    keys = jax.vmap(jax.random.fold_in)(jax.random.split(jax.random.key(17), NUM_DRAWN), jnp.arange(NUM_DRAWN) % 7)
    first = jax.vmap(lambda key: jax.random.categorical(key, jnp.asarray(LOGITS)))(keys)
    np.testing.assert_array_equal(draws([plain], method_of([plain]))[0], first)
    assert method_of([plain]) == Method(True) and method_of([Sampling(top_k=3, min_p=0.5)]) == Method()


def test_greedy_tokens_are_the_likeliest_after_the_penalty_whatever_else_is_asked(drawn_together):
    sampling = Sampling(repetition_penalty=1.7, top_k=3, min_p=0.9, top_p=0.1)
    (tokens,) = draws([sampling], method_of([sampling]))
    assert set(tokens) == {penalized(LOGITS, HELD, 1.7).argmax()} != {LOGITS.argmax()}


@pytest.fixture(scope="module")
def loud(tmp_path_factory):
    """A model whose greedy answers are not one token for ever."""
    return trajectory.write_model(tmp_path_factory.mktemp("loud") / "model", "mistral", loudness=2.0)


def prompts_of(spec, number=6):
    random = np.random.default_rng(4)
    return [random.integers(3, spec.V, length).astype(np.int32) for length in random.integers(2, 60, number)]


@pytest.mark.filterwarnings("ignore")  # from other libraries
def test_greedy_answers_with_a_repetition_penalty_are_those_of_transformers(loud):
    """When this fails, prompt or answer are not counted among what is repeated, or a refilled slot remembers who was there."""
    model = replace(open_model(loud, raw=True), stop_tokens=())
    prompts = prompts_of(model.spec)
    found = {}
    for penalty in (1.0, 1.6):
        sampling = Sampling(20, repetition_penalty=penalty)
        found[penalty] = [each.tokens for each in answer_tokens(model, prompts, sampling=sampling, batch_size=2)]
    theirs = base_model(loud)
    theirs.generation_config.eos_token_id = None
    for prompt, ours in zip(prompts, found[1.6], strict=True):
        ids = torch.tensor(prompt[None], dtype=torch.long)
        whole = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, pad_token_id=0, repetition_penalty=1.6)  # fmt: skip
        assert ours == whole[0, len(prompt) :].tolist()
    assert found[1.0] != found[1.6]


def test_told_log_probabilities_are_those_of_a_full_forward_pass(loud):
    """When this fails, a trainer on samples corrects for another policy than the one that drew them."""
    model = open_model(loud, raw=True)
    engine = OwnEngine.of(replace(model, stop_tokens=(5, 9, 11)), BatchLimits(3))
    settings = [
        Sampling(19, temperature=0.7, top_p=0.9, repetition_penalty=1.2, logps=True),
        Sampling(19, logps=True),
        Sampling(19, temperature=1.0),
    ]
    prompts = prompts_of(model.spec)
    asked = [Question(index, prompt, settings[index % 3]) for index, prompt in enumerate(prompts)]
    samples = [sample for drawn in engine.sample(asked, num_samples=2) for sample in drawn.samples]
    decoder = nnx.merge(abstract_decoder(model.spec)[0], model.parameters)
    logps = jax.jit(lambda ids: jax.nn.log_softmax(decoder.logits(decoder(ids, plain_layout(ids)))[0]))
    assert {sample.finish_reason for sample in samples} == {"stop", "length"}
    for sample in samples:
        assert (sample.logps is None) == (sample.prompt % 3 == 2)
        if sample.logps is None:
            continue
        ids = np.append(prompts[sample.prompt], sample.tokens).astype(np.int32)
        padded = np.zeros((1, 96), np.int32)
        padded[0, : len(ids)] = ids
        at = np.arange(len(prompts[sample.prompt]), len(ids))
        np.testing.assert_allclose(sample.logps, np.asarray(logps(padded))[at - 1, ids[at]], atol=2e-5)


def test_a_stop_string_ends_an_answer_wherever_its_tokens_begin_and_end(loud):
    """When this fails, a stop string is missed that begins in the middle of a token or ends in the next segment, is part of the
    answer, or ends the answers of others."""
    model = replace(open_model(loud, raw=True), stop_tokens=())
    engine, prompts = OwnEngine.of(model, BatchLimits(2)), prompts_of(model.spec, 3)

    def answers(*stops):
        asked = [Question(n, prompts[n], Sampling(40, stop=stop)) for n, stop in enumerate(stops)]
        return {each.prompt: each for drawn in engine.sample(asked, num_samples=1) for each in drawn.samples}

    free = answers((), (), ())
    text_of = lambda tokens: answer_text(model.tokenizer, tokens)  # noqa: E731
    pieces = [text_of(free[1].tokens[:n]) for n in range(41)]
    whole, late = pieces[-1], len(pieces[18])
    begin = next(at for at in range(late, len(whole)) if whole.find(whole[at : at + 4]) == at)
    stop = whole[begin : begin + 4]
    found = answers((), (stop, "never said"), ())
    number = next(n for n, piece in enumerate(pieces) if stop in piece)
    assert number > 16 and begin + 4 > len(pieces[number - 1])
    assert found[1].tokens == free[1].tokens[:number] and found[1].finish_reason == "stop"
    assert found[1].text == whole[:begin] and (found[0], found[2]) == (free[0], free[2])


def test_of_several_stop_strings_the_one_that_is_complete_first_counts():
    words = ["a", "b<", "en", "d>c", "d"]
    text_of = lambda tokens: "".join(words[token] for token in tokens)  # noqa: E731
    assert stopped_at(range(5), 0, ["<end>", "never"], text_of) == (4, "ab")
    assert stopped_at(range(5), 0, ["<end>", "en", "n"], text_of) == (3, "ab<")
    assert stopped_at(range(5), 3, ["d>cd"], text_of) == (5, "ab<en")
    assert stopped_at(range(5), 0, ["ad"], text_of) is None
