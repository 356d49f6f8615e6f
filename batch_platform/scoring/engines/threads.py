"""Work on many items at once, its results in the order of the items, with few of them in memory.

What is slow here runs outside Python's lock: decoding, arithmetic, compression, hashing. Knows nothing of what an item is.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, wait
from contextlib import closing
from itertools import repeat
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_END = object()


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    pool: Executor, work: Callable[[Item], Result], items: Iterable[Item], *, at_once: int
) -> Generator[Result]:
    """What `work` makes of each item, in the order of the items, made on the threads of a pool.

    Items are taken one by one, at most `at_once` ahead of the last result that was taken. What fails, an item or the
    work on it, is raised in its turn; however this ends, no work goes on after it.
    """
    pending, failure = deque[Future[Result]](), None
    coming = iter(items)
    try:
        while True:
            try:
                item = next(coming)
            except StopIteration:
                break
            except Exception as error:  # noqa: BLE001 - raised below, in its turn
                failure = error
                break
            pending.append(pool.submit(work, item))
            del item
            if len(pending) >= at_once:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
        if failure is not None:
            raise failure
    finally:
        for future in pending:
            future.cancel()
        wait(pending)


def read_ahead(reader: Executor, items: Iterator[Item], *, at_once: int) -> Generator[Item]:
    """The same items, taken on the one thread of a pool while the last ones are in use."""
    with closing(in_order(reader, lambda _: next(items, _END), repeat(None), at_once=at_once)) as coming:
        for item in coming:
            if item is _END:
                return
            yield item  # pyright: ignore[reportReturnType] - all but the end is an item
