"""Our engine: samples of an opened model, drawn on its mesh in slots that are refilled as samples finish.

A prompt is computed once for all of its samples. A sample is computed in shapes that follow from its own length, so it does
not depend on the others, whichever they are.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Int, Int32, UInt32

from rapo_jax.generate import batches
from rapo_jax.generate.batches import BatchLimits, padded_length, room_of
from rapo_jax.generate.engine import Drawn, Question
from rapo_jax.generate.sampling import Method, RowSampling, method_of, random_key, row_sampling
from rapo_jax.generate.slots import Begun, Drawing, Prefilled, Programs, Slots
from rapo_jax.generate.store import Key, Sample
from rapo_jax.generate.weights import unstacked
from rapo_jax.models.spec import Spec
from rapo_jax.opened import OpenedModel
from rapo_jax.parallel import host_slice, num_row_shards
from rapo_jax.peers import at


@dataclass(frozen=True)
class Task:
    """A prompt and the numbers of the samples that continue it. `drawn`: tokens of its one sample that end the prompt."""

    question: Question
    numbers: tuple[int, ...]
    tokens: Int[np.ndarray, " _"]
    drawn: tuple[int, ...] = ()
    limit: int = 0  # of new tokens

    @property
    def room(self) -> int:
        return max(room_of(len(self.tokens) + self.limit + batches.SEGMENT), padded_length(len(self.tokens)))


@dataclass
class Running:
    """A sample in a slot. `length` counts the tokens of prompt and answer that are in the cache."""

    task: Task
    number: int
    key_2: UInt32[np.ndarray, "2"]
    tokens: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.task.tokens) + max(len(self.tokens) - 1, 0)


@dataclass(frozen=True)
class OwnEngine:
    """`parameters` may include the adapters that `spec` describes. `batch_size` and the like are rounded up to a multiple of the
    mesh's shards of rows. With several processes, every process asks the same questions and gets all samples."""

    parameters: dict[str, Any]
    spec: Spec
    mesh: Mesh
    dtype: jnp.dtype
    stop_tokens: Sequence[int]
    limits: BatchLimits
    programs: dict[Method, Programs] = field(
        default_factory=dict, repr=False, compare=False
    )  # for the next questions, too

    @staticmethod
    def of(model: OpenedModel, limits: BatchLimits) -> "OwnEngine":
        return OwnEngine(model.parameters, model.spec, model.mesh, model.dtype, model.stop_tokens, limits)

    def sample(
        self, questions: Sequence[Question], *, num_samples: int, known: Collection[Key] = ()
    ) -> Iterator[Drawn]:
        stops = np.asarray(sorted(set(self.stop_tokens)), np.int32)
        method = method_of([question.sampling for question in questions])
        tasks = [task_of(question, range(num_samples), self.spec.rope.turning_point) for question in questions]
        with jax.set_mesh(self.mesh):
            if method not in self.programs:
                made = next(iter(self.programs.values()), None)
                weights = (
                    made.weights
                    if made
                    else unstacked(self.parameters, self.spec, mesh=self.mesh, dtype=jnp.dtype(self.dtype))
                )
                drawing = Drawing(method, jnp.dtype(self.dtype), stops)
                self.programs[method] = Programs(self.parameters, weights, self.spec, self.mesh, drawing=drawing)
            programs = self.programs[method]
            while tasks:
                room = max(task.room for task in tasks)
                pool = Pool(programs, [task for task in tasks if task.room == room], self.limits, known=known)
                tasks = [task for task in tasks if task.room != room]
                yield from pool.run()
                tasks += pool.longer


def task_of(question: Question, numbers: Sequence[int], turning_point: int | None, drawn: Sequence[int] = ()) -> Task:
    """The task of a prompt. Where frequencies are others in sequences beyond a certain length (LongRoPE), what the cache holds is
    of no use beyond it: a sample that gets there ends, and begins again with its tokens as prompt."""
    tokens, limit = (
        np.append(question.tokens, np.asarray(drawn, np.int32)),
        question.sampling.max_new_tokens - len(drawn),
    )
    if turning_point is not None and len(tokens) <= turning_point:
        limit = min(limit, turning_point + 1 - len(tokens))
    return Task(question, tuple(numbers), tokens, tuple(drawn), limit)


class Pool:
    """Tasks that need the same room, and the slots in which their samples are drawn."""

    def __init__(self, programs: Programs, tasks: Sequence[Task], limits: BatchLimits, *, known: Collection[Key]):
        self.programs, self.limits, shards = programs, limits, num_row_shards(programs.mesh)
        self.stops, self.room = programs.drawing.stops, tasks[0].room
        num_samples = sum(len(task.numbers) for task in tasks)
        self.num_slots = limits.num_slots(self.room, num_samples=num_samples, row_shards=shards)
        left = [Task(t.question, new, t.tokens, t.drawn, t.limit) for t in tasks if (new := unknown(t, known))]
        left.sort(key=lambda task: -padded_length(len(task.tokens)))
        self.groups: deque[list[Task]] = deque()
        for length, alike in groupby(left, key=lambda task: padded_length(len(task.tokens))):
            most = limits.num_prompts(length, row_shards=shards)
            while group := list(islice(alike, most)):
                self.groups.append(group)
        self.waiting: deque[tuple[Running, int]] = (
            deque()
        )  # samples of the prompts that were computed last, and their rows
        self.prompts: Prefilled | None = None
        self.running: dict[int, Running] = {}
        self.longer: list[Task] = []

    def run(self) -> Iterator[Drawn]:
        """Draws all samples but those that go on as tasks of another room, in `longer`."""
        if not self.groups:
            return
        slots, number = self.programs.empty(self.num_slots, self.room), 0
        while self.groups or self.waiting or self.running:
            at(f"segment {(number := number + 1)} of samples with room for {self.room} tokens")
            firsts = []
            while len(self.running) < self.num_slots and (self.waiting or self.groups):
                if not self.waiting:
                    self.compute_prompts()
                slots, token_B, new = self.fill(slots)
                firsts.append((token_B, new))
            rows, prompt_B = self.rows(), self.of_slots(lambda each: len(each.task.tokens))
            longest = max(each.length for each in self.running.values())
            slots, new_BS, step = self.programs.continued(slots, rows, prompt_B, longest=longest)
            for token_B, new in firsts:
                for slot, token in zip(new, host_slice(token_B)[new], strict=True):
                    self.running[slot].tokens.append(int(token))
            yield self.collected(
                host_slice(new_BS)[:, : int(host_slice(step))], firsts=sum(len(new) for _, new in firsts)
            )

    def compute_prompts(self) -> None:
        """Computes the prompts of the next group; their samples then wait for slots."""
        group, shards = self.groups.popleft(), num_row_shards(self.programs.mesh)
        length = padded_length(len(group[0].tokens))
        num_rows = self.limits.num_prompts(length, row_shards=shards)
        tokens_BT, length_B = np.zeros((num_rows, length), np.int32), np.ones(num_rows, np.int32)
        for row, task in enumerate(group):
            tokens_BT[row, : len(task.tokens)], length_B[row] = task.tokens, len(task.tokens)
            for number in task.numbers:
                key_2 = random_key(task.question.sampling.seed, task.question.index, number)
                self.waiting.append((Running(task, number, key_2), row))
        self.prompts = self.programs.prefilled(tokens_BT, length_B)

    def fill(self, slots: Slots) -> tuple[Slots, Int32[Array, " B"], list[int]]:
        """Puts samples that wait into free slots; returns their first tokens and their slots."""
        free = [slot for slot in range(self.num_slots) if slot not in self.running]
        source_B, new = np.zeros(self.num_slots, np.int32), []
        for slot in free[: len(self.waiting)]:
            self.running[slot], source_B[slot] = self.waiting.popleft()
            new.append(slot)
        is_new_B = np.isin(np.arange(self.num_slots), new)
        length_B = self.of_slots(lambda each: len(each.task.tokens))
        assert self.prompts is not None
        begun = Begun(is_new_B, source_B, length_B)
        slots, token_B = self.programs.inserted(slots, self.prompts, self.rows(), begun)
        return slots, token_B, new

    def rows(self) -> RowSampling:
        """The sampling of every slot; a free one has that of another."""
        some = next(iter(self.running.values()))
        each = [self.running.get(slot, some) for slot in range(self.num_slots)]
        return row_sampling(
            [row.task.question.sampling for row in each],
            [row.key_2 for row in each],
            limits=[row.task.limit for row in each],
            earlier=[len(row.task.drawn) for row in each],
        )

    def of_slots(self, number: Callable[[Running], int]) -> Int32[np.ndarray, " B"]:
        """A number of every slot; 1 for free ones."""
        running = self.running
        return np.array([number(running[slot]) if slot in running else 1 for slot in range(self.num_slots)], np.int32)

    def collected(self, new_BS: Int32[np.ndarray, "B S"], *, firsts: int) -> Drawn:
        """Takes the new tokens of every sample, and those that finished out of their slots."""
        samples, num_tokens = [], firsts
        for slot, row in list(self.running.items()):
            before, limit = len(row.tokens), row.task.limit
            tokens = (row.tokens + new_BS[slot].tolist())[:limit]
            ends = np.flatnonzero(np.isin(tokens, self.stops))
            row.tokens = tokens[: ends[0]] if len(ends) else tokens
            num_tokens += len(row.tokens) - before
            if not len(ends) and len(tokens) < limit:
                continue
            del self.running[slot]
            drawn, task = [*row.task.drawn, *row.tokens], row.task
            if not len(ends) and len(drawn) < task.question.sampling.max_new_tokens:
                self.longer.append(task_of(task.question, [row.number], self.programs.spec.rope.turning_point, drawn))
            else:
                reason = "stop" if len(ends) else "length"
                samples.append(Sample(task.question.index, drawn, reason, row.number))
        compiling, self.programs.compiling = self.programs.compiling, 0.0
        return Drawn(samples, num_tokens, compiling, self.num_slots)


def unknown(task: Task, known: Collection[Key]) -> tuple[int, ...]:
    """The numbers of a task's samples that are not known."""
    return tuple(number for number in task.numbers if (task.question.index, number) not in known)
