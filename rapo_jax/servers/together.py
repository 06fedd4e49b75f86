"""Many questions, a few at a time, from code that waits for none of them."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, TypeVar

EVERY = 1.0  # second in which something is yielded, if only an empty list
MOST = 1024  # answers in a list

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
Answered = list[tuple[Asked, Answer | Exception]]


def ask_all(
    questions: Iterable[Asked],
    ask: Callable[[Asked], Awaitable[Answer]],
    *,
    session: AbstractAsyncContextManager[Any],
    concurrency: int,
    passed_on: type[Exception],
    most: int | None = None,
) -> Iterator[Answered[Asked, Answer]]:
    """The questions with their answers, as these come, in lists of at most so many (default: MOST): one a second, or sooner where there is
    much.

    At most `concurrency` questions are on their way, and no question is taken before there is room for it. An exception
    stands in the place of an answer where it is one of `passed_on`; any other is raised, after the answers before it.
    `session` is open meanwhile. When the caller stops in the middle, so do the questions.
    """
    with asyncio.Runner() as runner:
        lists = _lists(iter(questions), ask, session, concurrency=concurrency, passed_on=passed_on, most=most or MOST)
        while (answered := runner.run(_next_of(lists))) is not None:
            yield answered


async def _next_of(lists: AsyncGenerator[Answered, None]) -> Answered | None:
    with suppress(StopAsyncIteration):
        return await anext(lists)
    return None


async def _lists(
    questions: Iterator[Asked],
    ask: Callable[[Asked], Awaitable[Answer]],
    session: AbstractAsyncContextManager[Any],
    *,
    concurrency: int,
    passed_on: type[Exception],
    most: int,
) -> AsyncGenerator[Answered[Asked, Answer], None]:
    done: asyncio.Queue[tuple[Asked, Answer | Exception] | None] = asyncio.Queue(concurrency * 4)

    async def work() -> None:
        for question in questions:
            try:
                answer = await ask(question)
            except passed_on as error:
                answer = error
            except Exception as error:  # raised below, where it is waited for
                return await done.put((question, error))
            await done.put((question, answer))
        await done.put(None)

    async with session:
        workers = [asyncio.create_task(work()) for _ in range(concurrency)]
        try:
            left = concurrency
            while left:
                answered, left, raised = await _some(done, left, passed_on, most=most)
                if answered or not raised:
                    yield answered
                if raised is not None:
                    raise raised
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


async def _some(
    done: asyncio.Queue[tuple[Asked, Answer | Exception] | None], left: int, passed_on: type[Exception], *, most: int
) -> tuple[Answered[Asked, Answer], int, Exception | None]:
    """What comes within a second, how many workers are left, and what is to be raised after it."""
    answered: Answered[Asked, Answer] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(EVERY):
            while left and len(answered) < most:
                if (one := await done.get()) is None:
                    left -= 1
                elif isinstance(one[1], Exception) and not isinstance(one[1], passed_on):
                    return answered, left, one[1]
                else:
                    answered.append(one)
    return answered, left, None
