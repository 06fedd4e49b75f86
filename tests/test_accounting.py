"""The definitions of speed, counted by hand and against the attention mask."""

import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.accounting import (
    Work,
    causal_pairs,
    forward_flops,
    mfu,
    peak_flops,
    real_work,
    recomputed_flops,
    step_flops,
)
from rapo_jax.batch import Shape
from rapo_jax.batching.batch_plan import materialise
from rapo_jax.models.attention.layout import Layout, in_window, sees
from rapo_jax.models.lora import adapted_spec
from tests.tiny import random_groups, tiny_spec


def test_the_work_of_a_group_counted_by_hand():
    """Prompt of 2, responses of 2 and 1: the prompt's pairs are 1 + 2, the responses' 3 + 4 and 3; two layers."""
    work = real_work(np.array([2]), np.array([[2, 1]]), windows=(100, 100))
    assert work == Work(tokens=5, scored=3, pairs=2 * (1 + 2 + 3 + 4 + 3))


def test_a_window_hides_distant_tokens():
    """With a window of 2 every token but the first sees itself and the one before, along its own branch."""
    assert causal_pairs(np.array([1, 2, 5]), 2).tolist() == [1, 3, 9]
    work = real_work(np.array([2]), np.array([[2, 1]]), windows=(2,))
    assert work.pairs == 3 + (2 + 2) + 2


@pytest.mark.parametrize("window", [3, 8, 2**30])
def test_the_counted_pairs_are_those_that_the_mask_allows(window):
    """When this fails, MFU counts pairs that nobody computes, or omits some."""
    groups = random_groups(5)
    prompts = np.array([len(g.prompt) for g in groups])
    responses = np.array([[len(r) for r in g.responses] for g in groups])
    T = int(prompts.sum() + responses.sum()) + 6
    batch = materialise(groups, [list(range(5))], Shape(M=1, B=1, T=T, S=T, P=5, C=2), mine=[0])
    rows = (jnp.asarray(x[0]) for x in (batch.position, batch.group, batch.branch))
    layout = Layout(jnp.arange(T)[None], *rows)
    visible = sees(layout, layout) & in_window(layout, layout, window)
    assert real_work(prompts, responses, (window,)).pairs == int(visible.sum()) - 6  # padding sees itself


def test_flops_counted_by_hand():
    """D 32, N 4, K 2, H 16, F 48, V 96: see tests/tiny/families.py."""
    spec = tiny_spec("llama3")
    layer = 2 * (spec.D * spec.N * spec.H * 2 + spec.D * spec.K * spec.H * 2 + 3 * spec.D * spec.F)
    assert forward_flops(spec, Work(tokens=1, scored=0, pairs=0)) == spec.L * layer
    assert forward_flops(spec, Work(tokens=0, scored=1, pairs=0)) == 2 * spec.D * spec.V
    assert forward_flops(spec, Work(tokens=0, scored=0, pairs=1)) == 4 * spec.N * spec.H


def test_a_step_costs_three_forward_passes_and_the_references():
    spec, work = tiny_spec("llama3"), Work(tokens=10, scored=6, pairs=90)
    forward = forward_flops(spec, work)
    assert step_flops(spec, work, reference=True) == 4 * forward
    assert step_flops(spec, work, reference=False) == 3 * forward


def test_frozen_matrices_have_no_weight_gradient_and_adapters_do():
    """When this fails, the MFU of a LoRA run counts work that nobody does."""
    spec, work = tiny_spec("llama3"), Work(tokens=10, scored=6, pairs=90)
    adapted = adapted_spec(spec, rank=3, alpha=None, targets=["q", "down"], rslora=False)
    attention = 90 * 4 * spec.N * spec.H
    weights = forward_flops(spec, work) - attention
    adapters = 10 * spec.L * 2 * 3 * (spec.D + spec.N * spec.H + spec.F + spec.D)
    assert forward_flops(adapted, work) == forward_flops(spec, work), "the reference has no adapters"
    assert step_flops(adapted, work, reference=False) == 2 * weights + 3 * attention + 3 * adapters
    assert step_flops(adapted, work, reference=True) == 3 * weights + 4 * attention + 3 * adapters


@pytest.mark.parametrize("family", ["llama3", "gemma2"])
def test_more_remat_recomputes_more_and_never_more_than_a_forward(family):
    spec, work = tiny_spec(family), Work(tokens=10, scored=6, pairs=90)
    none, attention, full = (recomputed_flops(spec, work, remat=level) for level in ("none", "attention", "full"))
    assert none == (6 * 2 * spec.D * spec.V if spec.final_softcap else 0)  # the logits, where they cannot be kept
    assert none < attention < full <= forward_flops(spec, work)
    assert recomputed_flops(spec, work, remat="none", scores_again=1) == none + 90 * 2 * spec.N * spec.H


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989.4),
    ],
)
def test_peaks(kind, tera):
    assert peak_flops(kind) == pytest.approx(tera * 1e12)


def test_an_unknown_peak_is_none_and_not_a_guess():
    assert peak_flops("cpu") is None and peak_flops("NVIDIA H1000") is None
    assert mfu(1e12, device_kind="cpu", num_devices=1) is None
    assert mfu(98.5e12, device_kind="TPU v5 lite", num_devices=2) == pytest.approx(0.25)
