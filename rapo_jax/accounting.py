"""Definitions of the throughput metrics, shared by the training loop, `rapo plan`, the benchmarks and the documentation.

Counting only; nothing is measured here.

**pairs/s**: groups (a prompt with its responses, after relabelling) of finished optimizer steps per second of wall-clock
time, excluding evaluation and checkpoints. Every group counts once, however it was packed.

**real tokens/s**: unique real tokens per second. A group has len(prompt) + sum of len(response) of them: the prompt
counts once, although every response attends to it, and padding does not count.

**share of real tokens**: real tokens / positions of the computed rows.

**useful FLOPs**: the FLOPs that a step's mathematics needs for its unique real tokens.

    layers       2 FLOPs per weight of the layers' matrices and real token
    vocabulary   2 * D * V per scored position (a token of a response); prompt tokens need no logits
    attention    4 * N * H per visible (query, key) pair and layer: own prompt, own branch, inside the window

  The backward pass costs twice the forward pass. The reference's forward pass counts once if it is computed in the step,
  and not at all if its log-probabilities are cached. Norms, rotations, softmax and the optimizer are not counted (below
  1 %).

  LoRA: the backward pass of a frozen matrix, the vocabulary's included, costs as much as its forward pass (the gradient
  of its input only), that of attention twice as much. Adapters count as small matrices that are trained like any other;
  the reference has none. The same pairs/s therefore give a lower MFU than in full fine-tuning: compare pairs/s between
  the two, MFU within each. The gradient of the first layer's input is counted, although LoRA does not use it.

**MFU** (model-FLOP utilisation; Chowdhery et al., "PaLM", 2022, appendix B): useful FLOPs per second / (devices * peak).
The reference's forward pass is included; rematerialization (of layers, logits and attention scores) and padding are not.

**padding FLOPs** and **recomputed FLOPs** are the rest of a step; the compiled program's FLOPs are the sum of the three.
"""

from dataclasses import dataclass
from math import prod

import numpy as np
from jaxtyping import Int

from rapo_jax.batch import Scored
from rapo_jax.matrices import MATRICES
from rapo_jax.models.decoder import logits_are_kept
from rapo_jax.models.parameters import adapter_letters, shape_of
from rapo_jax.models.spec import Spec

# Dense bfloat16 FLOP/s of one JAX device, by jax.Device.device_kind. Cloud TPU system architecture pages ("TPU v4" ...
# "TPU7x": a device is one of the chip's two chiplets); NVIDIA data sheets of A100, H100, H200, B200, L4 without sparsity.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 2307e12 / 2,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989.4e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA GH200": 989.4e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Peak bfloat16 FLOP/s of a device, or None if unknown (a CPU).

    >>> peak_flops("NVIDIA H100 80GB HBM3"), peak_flops("cpu")
    (989400000000000.0, None)
    """
    if device_kind in PEAK_FLOPS:
        return PEAK_FLOPS[device_kind]
    known = [
        kind
        for kind in PEAK_FLOPS
        if kind.startswith("NVIDIA") and f"{device_kind} ".startswith((kind + " ", kind + "-"))
    ]
    return PEAK_FLOPS[max(known, key=len)] if known else None


@dataclass(frozen=True)
class Work:
    """The size of a forward pass: tokens through the layers, positions through the vocabulary, and (query, key) pairs of
    attention, summed over the layers."""

    tokens: float
    scored: float
    pairs: float


def real_work(
    prompts: Int[np.ndarray, " groups"],
    responses: Int[np.ndarray, "groups C"],
    windows: tuple[int, ...],
    *,
    scored: Scored = "responses",
) -> Work:
    """The work of groups with these lengths in tokens; `windows` as in Spec. A reward model ("last") needs no logits."""
    ends = prompts[:, None] + responses
    pairs = 0
    for window in set(windows):
        alone = causal_pairs(prompts, window)
        each = alone.sum() + (causal_pairs(ends, window) - alone[:, None]).sum()
        pairs += windows.count(window) * int(each)
    num_scored = {"responses": responses.sum(), "prompt_too": responses.sum() + (prompts - 1).sum(), "last": 0}[scored]
    return Work(tokens=int(prompts.sum() + responses.sum()), scored=int(num_scored), pairs=pairs)


def causal_pairs(length: Int[np.ndarray, "*any"], window: int) -> Int[np.ndarray, "*any"]:
    """Visible pairs of sequences with these lengths: token i sees min(i + 1, window) tokens.

    >>> causal_pairs(np.array([4, 4]), 2)  # 1 + 2 + 2 + 2
    array([7, 7])
    """
    ramp = np.minimum(length.astype(np.int64), window)
    return ramp * (ramp + 1) // 2 + (length - ramp) * ramp


def forward_flops(spec: Spec, work: Work) -> float:
    """FLOPs of one forward pass, without adapters."""
    return weight_flops(spec, work) + work.pairs * attention_matmuls(spec)


def weight_flops(spec: Spec, work: Work) -> float:
    """FLOPs of one forward pass through the model's own matrices, without attention and adapters."""
    return work.tokens * spec.L * sum(layer_matmuls(spec).values()) + work.scored * vocabulary_matmul(spec)


def step_flops(spec: Spec, work: Work, *, reference: bool) -> float:
    """FLOPs of the policy's forward and backward pass, and of the reference's forward pass if the step computes it."""
    forward = forward_flops(spec, work)
    policy = 3 * forward
    if spec.lora is not None:
        policy += 3 * work.tokens * spec.L * sum(adapter_matmuls(spec).values()) - weight_flops(spec, work)
    return policy + forward * reference


def recomputed_flops(spec: Spec, work: Work, *, remat: str, scores_again: int = 0) -> float:
    """FLOPs of rematerialization: products that the backward pass computes a second time.

    `remat` decides which products of a layer are repeated (rapo_jax/models/decoder.py) and whether the logits are
    (rapo_jax/logprobs.py). `scores_again` is the number of products with the size of the attention scores that a kernel
    repeats because it keeps no scores: 1 in one fused backward pass, 3 in two separate backward kernels.
    """
    matmuls, adapters, narrow = layer_matmuls(spec), adapter_matmuls(spec), adapter_matmuls(spec, sides="a")
    if spec.norms == "before":  # down's output is only added to the residual, which is kept as the next layer's input
        matmuls["down"] = 0
        adapters |= {name: flops for name, flops in narrow.items() if name == "down"}
    again = {
        "none": (),
        "mlp": ("q", "k", "v", "o", "down"),
        "attention": ("o", "gate", "up", "down"),
        "full": tuple(matmuls),
    }[remat]
    each = sum(matmuls[name] + adapters.get(name, 0.0) for name in again)
    if again:  # x A of an adapter is recomputed even where its matrix's product is kept
        each += sum(flops for name, flops in narrow.items() if name not in again)
    attention = work.pairs * attention_matmuls(spec) * ((remat in ("mlp", "full")) + scores_again / 2)
    logits = 0.0 if logits_are_kept(remat, spec) else work.scored * vocabulary_matmul(spec)
    return work.tokens * spec.L * each + logits + attention


def layer_matmuls(spec: Spec) -> dict[str, float]:
    """FLOPs per token of each matrix of a layer, forward."""
    return {name: 2.0 * prod(shape_of(spec, matrix.letters)) for name, matrix in MATRICES.items()}


def adapter_matmuls(spec: Spec, sides: str = "ab") -> dict[str, float]:
    """FLOPs per token of each adapter of a layer, forward: of both its matrices, or of those in `sides`."""
    letters, targets = adapter_letters(spec), spec.lora.targets if spec.lora else ()

    def num_weights(name: str) -> int:
        return sum(prod(shape_of(spec, letters[f"{name}_lora_{side}"])) for side in sides)

    return {name: 2.0 * num_weights(name) for name in targets}


def vocabulary_matmul(spec: Spec) -> float:
    """FLOPs per scored position, forward."""
    return 2.0 * spec.D * spec.V


def attention_matmuls(spec: Spec) -> float:
    """FLOPs per visible pair of one layer, forward: the products q k and p v in every head."""
    return 4.0 * spec.N * spec.H


def mfu(useful_flops_per_s: float, *, device_kind: str, num_devices: int) -> float | None:
    """Model-FLOP utilisation, or None if the peak is unknown."""
    peak = peak_flops(device_kind)
    return None if peak is None else useful_flops_per_s / (peak * num_devices)
