"""The continuations of prompts that are in memory, by our engine."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int
from tqdm import tqdm

from rapo_jax.generate.batches import BatchLimits
from rapo_jax.generate.engine import Question
from rapo_jax.generate.own import OwnEngine
from rapo_jax.generate.sampling import Sampling
from rapo_jax.models.spec import Spec
from rapo_jax.opened import OpenedModel, require_ids_fit


@dataclass(frozen=True)
class Continuation:
    """The new tokens without the stop token, and what ended them: a stop token or max_new_tokens."""

    tokens: list[int]
    finish_reason: Literal["stop", "length"]


def answer_tokens(
    model: OpenedModel, prompts: Sequence[Int[np.ndarray, " _"]], *, sampling: Sampling, batch_size: int = 16
) -> list[Continuation]:
    """The continuations of all prompts (token ids), in their order. Shows progress on the first process.

    Raises UserError for token ids beyond the model's vocabulary.
    """
    require_ids_fit(prompts, model.tokenizer, model.spec, said=model.name)
    answers = decode(
        model.parameters,
        model.spec,
        prompts,
        sampling=sampling,
        stop_tokens=model.stop_tokens,
        mesh=model.mesh,
        dtype=model.dtype,
        batch_size=batch_size,
    )
    hidden = None if jax.process_index() == 0 else True  # None: shown on a terminal only
    found = dict(tqdm(answers, total=len(prompts), desc="generate", disable=hidden))
    return [found[index] for index in range(len(prompts))]


def decode(
    parameters: dict[str, Any],
    spec: Spec,
    prompts: Sequence[Int[np.ndarray, " _"]],
    *,
    sampling: Sampling,
    stop_tokens: Sequence[int],
    mesh: Mesh,
    dtype: jnp.dtype | str = "float32",
    batch_size: int = 16,
) -> Iterator[tuple[int, Continuation]]:
    """Yields (index of the prompt, its continuation), as they end.

    `parameters` may include the adapters that `spec` describes. `batch_size` is rounded up to a multiple of the mesh's
    row shards. With several processes, every process passes the same prompts and gets all continuations.
    """
    engine = OwnEngine(parameters, spec, mesh, jnp.dtype(dtype), stop_tokens, BatchLimits(batch_size))
    questions = [Question(index, np.asarray(prompt, np.int32), sampling) for index, prompt in enumerate(prompts)]
    for drawn in engine.sample(questions, num_samples=1):
        for sample in drawn.samples:
            yield sample.prompt, Continuation(sample.tokens, sample.finish_reason)
