"""Our engine: samples of an opened model, drawn on its mesh in slots that are refilled as samples finish.

A prompt is computed once for all of its samples. A sample is computed in shapes that follow from its own length, so it does
not depend on the others, whichever they are.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, islice
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, Int32, UInt32

from rapo_jax.generate import batches
from rapo_jax.generate.batches import BatchLimits, padded_length, room_of
from rapo_jax.generate.engine import Drawn, Question
from rapo_jax.generate.sampling import Method, RowSampling, method_of, random_key, row_sampling, stopped_at
from rapo_jax.generate.slots import Begun, Drawing, NewTokens, Prefilled, Programs, Slots
from rapo_jax.generate.store import Key, Sample
from rapo_jax.generate.weights import unstacked
from rapo_jax.models.spec import Spec
from rapo_jax.opened import OpenedModel, answer_text
from rapo_jax.parallel import host_slice, num_row_shards
from rapo_jax.peers import at


@dataclass(frozen=True)
class Task:
    """A prompt and the numbers of the samples that continue it. `drawn`: tokens of its one sample that end the prompt, and their
    log-probabilities."""

    question: Question
    numbers: tuple[int, ...]
    tokens: Int[np.ndarray, " _"]
    drawn: tuple[int, ...] = ()
    drawn_logps: tuple[float, ...] = ()
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
    logps: list[float] = field(default_factory=list)  # where anybody asks for them
    num_told: int = 0  # tokens that were looked at already

    @property
    def length(self) -> int:
        return len(self.task.tokens) + max(len(self.tokens) - 1, 0)


@dataclass(frozen=True)
class OwnEngine:
    """`parameters` may include the adapters that `spec` describes. `batch_size` and the like are rounded up to a multiple of the
    mesh's shards of rows. `text_of` tells an answer's text, for stop strings. With several processes, every process asks the same
    questions and gets all samples."""

    parameters: dict[str, Any]
    spec: Spec
    mesh: Mesh
    dtype: jnp.dtype
    stop_tokens: Sequence[int]
    limits: BatchLimits
    text_of: Callable[[Sequence[int]], str] | None = None
    programs: dict[Method, Programs] = field(
        default_factory=dict, repr=False, compare=False
    )  # for the next questions, too
    # What was compiled, by method: engines of other weights of the same shapes may share it.
    compiled: dict[Method, dict[tuple, Callable[..., Any]]] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def of(model: OpenedModel, limits: BatchLimits) -> "OwnEngine":
        text_of = partial(answer_text, model.tokenizer)
        return OwnEngine(model.parameters, model.spec, model.mesh, model.dtype, model.stop_tokens, limits, text_of)

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
                self.programs[method].compiled = self.compiled.setdefault(method, {})
            programs = self.programs[method]
            while tasks:
                room = max(task.room for task in tasks)
                alike = [task for task in tasks if task.room == room]
                pool = Pool(programs, alike, self.limits, known=known, text_of=self.text_of)
                tasks = [task for task in tasks if task.room != room]
                yield from pool.run()
                tasks += pool.longer


def task_of(
    question: Question,
    numbers: Sequence[int],
    turning_point: int | None,
    drawn: Sequence[int] = (),
    logps: Sequence[float] = (),
) -> Task:
    """The task of a prompt. Where frequencies are others in sequences beyond a certain length (LongRoPE), what the cache holds is
    of no use beyond it: a sample that gets there ends, and begins again with its tokens as prompt."""
    tokens, limit = (
        np.append(question.tokens, np.asarray(drawn, np.int32)),
        question.sampling.max_new_tokens - len(drawn),
    )
    if turning_point is not None and len(tokens) <= turning_point:
        limit = min(limit, turning_point + 1 - len(tokens))
    return Task(question, tuple(numbers), tokens, tuple(drawn), tuple(logps), limit)


class Pool:
    """Tasks that need the same room, and the slots in which their samples are drawn."""

    def __init__(
        self,
        programs: Programs,
        tasks: Sequence[Task],
        limits: BatchLimits,
        *,
        known: Collection[Key],
        text_of: Callable[[Sequence[int]], str] | None,
    ):
        self.programs, self.limits, shards = programs, limits, num_row_shards(programs.mesh)
        self.text_of = text_of
        assert text_of or not any(task.question.sampling.stop for task in tasks), "stop strings need a tokenizer"
        self.stops, self.room = programs.drawing.stops, tasks[0].room
        num_samples = sum(len(task.numbers) for task in tasks)
        self.num_slots = limits.num_slots(self.room, num_samples=num_samples, row_shards=shards)
        left = [replace(task, numbers=new) for task in tasks if (new := unknown(task, known))]
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
                slots, drawn, begun = self.fill(slots)
                firsts.append((drawn, begun))
            rows, prompt_B = self.rows(), self.of_slots(lambda each: len(each.task.tokens))
            longest = max(each.length for each in self.running.values())
            slots, new, step = self.programs.continued(slots, rows, prompt_B, longest=longest)
            for drawn, begun in firsts:
                self.take(drawn, begun, num=1)
            self.take(new, list(self.running), num=int(host_slice(step)))
            yield self.collected()

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

    def fill(self, slots: Slots) -> tuple[Slots, NewTokens, list[int]]:
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
        slots, drawn = self.programs.inserted(slots, self.prompts, self.rows(), begun)
        return slots, drawn, new

    def rows(self) -> RowSampling:
        """The sampling of every slot; a free one has that of another, and no token to draw."""
        some = next(iter(self.running.values()))
        each = [self.running.get(slot, some) for slot in range(self.num_slots)]
        return row_sampling(
            [row.task.question.sampling for row in each],
            [row.key_2 for row in each],
            limits=[row.task.limit if slot in self.running else 0 for slot, row in enumerate(each)],
            earlier=[len(row.task.drawn) for row in each],
        )

    def of_slots(self, number: Callable[[Running], int]) -> Int32[np.ndarray, " B"]:
        """A number of every slot; 1 for free ones."""
        running = self.running
        return np.array([number(running[slot]) if slot in running else 1 for slot in range(self.num_slots)], np.int32)

    def take(self, new: NewTokens, slots: Sequence[int], *, num: int) -> None:
        """Gives the samples in these slots so many tokens each."""
        tokens_BS = host_slice(new.tokens).reshape(self.num_slots, -1)[:, :num]
        logps_BS = None if new.logps is None else host_slice(new.logps).reshape(self.num_slots, -1)[:, :num]
        for slot in slots:
            row = self.running[slot]
            row.tokens += tokens_BS[slot].tolist()
            row.logps += [] if logps_BS is None else [float(str(each)) for each in logps_BS[slot]]

    def collected(self) -> Drawn:
        """Takes the samples that finished out of their slots."""
        samples, num_tokens = [], 0
        for slot, row in list(self.running.items()):
            reason, text = self.end_of(row)
            num_tokens, row.num_told = num_tokens + len(row.tokens) - row.num_told, len(row.tokens)
            if reason is None:
                continue
            del self.running[slot]
            task, sampling = row.task, row.task.question.sampling
            drawn, logps = [*task.drawn, *row.tokens], [*task.drawn_logps, *row.logps[: len(row.tokens)]]
            if reason == "length" and len(drawn) < sampling.max_new_tokens:
                turning_point = self.programs.spec.rope.turning_point
                self.longer.append(task_of(task.question, [row.number], turning_point, drawn, logps))
                continue
            told = logps if sampling.logps else None
            samples.append(Sample(task.question.index, drawn, reason, row.number, logps=told, text=text))
        compiling, self.programs.compiling = self.programs.compiling, 0.0
        return Drawn(samples, num_tokens, compiling, self.num_slots)

    def end_of(self, row: Running) -> tuple[Literal["stop", "length"] | None, str | None]:
        """What ends a sample, None where it goes on, and its text where a stop string does. Its tokens end there, too."""
        task, stop = row.task, row.task.question.sampling.stop
        row.tokens = row.tokens[: task.limit]
        ends, is_full = np.flatnonzero(np.isin(row.tokens, self.stops)), len(row.tokens) == task.limit
        row.tokens = row.tokens[: ends[0]] if len(ends) else row.tokens
        if stop and self.text_of:
            before = len(task.drawn)
            found = stopped_at([*task.drawn, *row.tokens], before + row.num_told, stop, self.text_of)
            if found:
                row.tokens = row.tokens[: found[0] - before]
                return "stop", found[1]
        return ("stop" if len(ends) else "length" if is_full else None), None


def unknown(task: Task, known: Collection[Key]) -> tuple[int, ...]:
    """The numbers of a task's samples that are not known."""
    return tuple(number for number in task.numbers if (task.question.index, number) not in known)
