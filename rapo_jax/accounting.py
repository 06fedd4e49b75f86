"""What the numbers of speed mean: one definition of each, for the loop, the benchmarks, the plan and the README.

**pairs/s**: groups (a prompt with its responses, after relabelling) of finished optimizer steps per second of wall-clock
time, evaluation and checkpoints not counted. Every pair counts once, however it was packed.

**real tokens/s**: unique real tokens per second. A group has len(prompt) + sum of len(response) of them: the prompt
counts once, although every response sees it, and padding counts nothing.

**share of real tokens**: real tokens / positions of the rows that were computed.

**useful FLOPs**: what the mathematics of a step asks for on unique real tokens, and no more.

    layers       2 FLOPs a weight of the layers' matrices and real token
    vocabulary   2 * D * V a scored position (a token of a response); prompt tokens never meet the vocabulary
    attention    4 * N * H a visible (query, key) pair and layer: its own prompt, its own branch, inside the window

  forward once, backward twice as much; the reference's forward once where it is computed in the step, nothing where its
  log-probabilities are cached. Norms, rotations, softmax and the optimizer are not counted (below 1 %).

  LoRA: frozen matrices, the vocabulary's included, have a backward pass of once their forward (the gradient of their
  input; that of the weight is asked for by nobody, and counts nothing), attention one of twice, and the adapters are
  small matrices of their own, trained like any; the reference's pass is without them. So the same pairs/s are a lower MFU
  than in full training: compare pairs/s across the two, MFU within each. The gradient of the first layer's input is
  counted, as for everyone, though with LoRA nobody reads it.

**MFU** (model-FLOP utilisation; Chowdhery et al., "PaLM", 2022, appendix B): useful FLOPs a second / (devices * peak).
The reference's pass is in, recomputation (remat, the logits and scores of the backward pass) and padding are out.

**padding FLOPs** and **recomputed FLOPs** are what a step spends besides; the program's total is the sum of the three.
"""

from dataclasses import dataclass
from math import prod

import numpy as np

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
    """bfloat16 FLOP/s of a device at its best, or None where that is not known (a CPU).

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
    """What a pass has to do: tokens through the layers, positions through the vocabulary, and (query, key) pairs of
    attention summed over the layers."""

    tokens: float
    scored: float
    pairs: float


def real_work(
    prompts: np.ndarray, responses: np.ndarray, windows: tuple[int, ...], *, scored: Scored = "responses"
) -> Work:
    """The work of groups with these lengths in tokens: prompts [G], responses [G, C]; `windows` as in Spec.

    A reward model's scores ("last") meet no vocabulary.
    """
    ends = prompts[:, None] + responses
    pairs = 0
    for window in set(windows):
        alone = causal_pairs(prompts, window)
        each = alone.sum() + (causal_pairs(ends, window) - alone[:, None]).sum()
        pairs += windows.count(window) * int(each)
    num_scored = {"responses": responses.sum(), "prompt_too": responses.sum() + (prompts - 1).sum(), "last": 0}[scored]
    return Work(tokens=int(prompts.sum() + responses.sum()), scored=int(num_scored), pairs=pairs)


def causal_pairs(length: np.ndarray, window: int) -> np.ndarray:
    """Visible pairs of a sequence: token i sees min(i + 1, window).

    >>> causal_pairs(np.array([4, 4]), 2)  # 1 + 2 + 2 + 2
    array([7, 7])
    """
    ramp = np.minimum(length.astype(np.int64), window)
    return ramp * (ramp + 1) // 2 + (length - ramp) * ramp


def forward_flops(spec: Spec, work: Work) -> float:
    """One forward pass, without adapters."""
    return weight_flops(spec, work) + work.pairs * attention_matmuls(spec)


def weight_flops(spec: Spec, work: Work) -> float:
    """One forward pass through the model's own matrices."""
    return work.tokens * spec.L * sum(layer_matmuls(spec).values()) + work.scored * vocabulary_matmul(spec)


def step_flops(spec: Spec, work: Work, *, reference: bool) -> float:
    """Forward and backward of the policy, and the reference's forward where it is computed in the step."""
    forward = forward_flops(spec, work)
    policy = 3 * forward
    if spec.lora is not None:
        policy += 3 * work.tokens * spec.L * sum(adapter_matmuls(spec).values()) - weight_flops(spec, work)
    return policy + forward * reference


def recomputed_flops(spec: Spec, work: Work, *, remat: str, scores_again: int = 0) -> float:
    """What the backward pass computes a second time.

    By `remat`, of each layer, whatever its backward pass needs again of what was not kept (see
    rapo_jax/models/decoder.py), and the logits, unless they are kept too (rapo_jax/logprobs.py). `scores_again` are the
    products of queries and keys (or values) that a kernel repeats because it kept no scores: 1 in a fused backward pass, 3
    where two kernels share the work.
    """
    matmuls, adapters, narrow = layer_matmuls(spec), adapter_matmuls(spec), adapter_matmuls(spec, sides="a")
    if spec.norms == "before":  # the sum with the branch's output is the next layer's input, which is kept
        matmuls["down"] = 0
        adapters |= {name: flops for name, flops in narrow.items() if name == "down"}
    again = {
        "none": (),
        "mlp": ("q", "k", "v", "o", "down"),
        "attention": ("o", "gate", "up", "down"),
        "full": tuple(matmuls),
    }[remat]
    each = sum(matmuls[name] + adapters.get(name, 0.0) for name in again)
    if again:  # where a product is kept, the narrow inside of its adapter is not
        each += sum(flops for name, flops in narrow.items() if name not in again)
    attention = work.pairs * attention_matmuls(spec) * ((remat in ("mlp", "full")) + scores_again / 2)
    logits = 0.0 if logits_are_kept(remat, spec) else work.scored * vocabulary_matmul(spec)
    return work.tokens * spec.L * each + logits + attention


def layer_matmuls(spec: Spec) -> dict[str, float]:
    """FLOPs a token of each matrix of a layer, forward."""
    return {name: 2.0 * prod(shape_of(spec, matrix.letters)) for name, matrix in MATRICES.items()}


def adapter_matmuls(spec: Spec, sides: str = "ab") -> dict[str, float]:
    """FLOPs a token of each adapter of a layer, forward: of both its matrices, or of one."""
    letters, targets = adapter_letters(spec), spec.lora.targets if spec.lora else ()
    size = lambda name: sum(prod(shape_of(spec, letters[f"{name}_lora_{side}"])) for side in sides)  # noqa: E731
    return {name: 2.0 * size(name) for name in targets}


def vocabulary_matmul(spec: Spec) -> float:
    """FLOPs a scored position, forward."""
    return 2.0 * spec.D * spec.V


def attention_matmuls(spec: Spec) -> float:
    """FLOPs a visible pair of one layer, forward: its score and its share of the values, in every head."""
    return 4.0 * spec.N * spec.H


def mfu(useful_flops_per_s: float, *, device_kind: str, num_devices: int) -> float | None:
    """Model-FLOP utilisation, or None where the peak is not known."""
    peak = peak_flops(device_kind)
    return None if peak is None else useful_flops_per_s / (peak * num_devices)
