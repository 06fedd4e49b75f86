"""Our engine: samples of an opened model, drawn on its mesh."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from rapo_jax.generate.batches import BatchLimits
from rapo_jax.generate.decode import decode_segments
from rapo_jax.generate.engine import Drawn, Question
from rapo_jax.generate.store import Key, Sample
from rapo_jax.opened import OpenedModel


@dataclass(frozen=True)
class OwnEngine:
    """With several processes, every process asks the same questions and gets all samples."""

    model: OpenedModel
    limits: BatchLimits

    def sample(
        self, questions: Sequence[Question], *, num_samples: int, known: Collection[Key] = ()
    ) -> Iterator[Drawn]:
        model, numbers = self.model, range(num_samples)
        keys = [(question.index, number) for question in questions for number in numbers]
        segments = decode_segments(
            model.parameters,
            model.spec,
            [(question.tokens, question.sampling, (question.index, n)) for question in questions for n in numbers],
            stop_tokens=model.stop_tokens,
            mesh=model.mesh,
            dtype=model.dtype,
            limits=self.limits,
            known={at for at, key in enumerate(keys) if key in known},
        )
        for segment in segments:
            samples = [
                Sample(keys[at][0], answer.tokens, answer.finish_reason, keys[at][1]) for at, answer in segment.finished
            ]
            yield Drawn(samples, segment.num_tokens, segment.compiling, self.limits.num_prompts)
