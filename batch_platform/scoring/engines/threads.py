"""Work on many items at once, with the results in the order of the items and few items in memory.

Threads suffice, because the slow work runs outside Python's lock: decoding, arithmetic, compression, hashing.
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
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    pool: Executor, work: Callable[[Item], Result], items: Iterable[Item], *, at_once: int
) -> Generator[Result]:
    """Call `work` on each item, on the threads of a pool; yields the results in the order of the items.

    Items are taken one by one, at most `at_once` ahead of the last result that was taken. An error in an item or in the
    work on it is raised when its result is due. However this ends, no work goes on afterwards.
    """
    pending, failure = deque[Future[Result]](), None
    coming = iter(items)
    try:
        while True:
            try:
                item = next(coming)
            except StopIteration:
                break
            except Exception as error:  # noqa: BLE001 - raised below, after the results before it
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
    """Yield the same items, read ahead on the single thread of a pool."""
    with closing(in_order(reader, lambda _: next(items, _END), repeat(None), at_once=at_once)) as coming:
        for item in coming:
            if item is _END:
                return
            yield item  # pyright: ignore[reportReturnType] - the end, which is no item, has returned above
