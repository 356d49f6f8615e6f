"""How many threads the native libraries below NumPy and the estimators use."""

from contextlib import AbstractContextManager

from threadpoolctl import ThreadpoolController


def one_thread() -> AbstractContextManager[object]:
    """Hold the numeric libraries loaded by now to one thread each, in this process: for many short calls.

    Waking more threads costs more than a batch is worth, and sums come out the same on every machine.
    """
    return ThreadpoolController().limit(limits=1)


def one_thread_here() -> None:
    """The same for a new thread that lives within `one_thread`: OpenMP keeps its limit for each thread that calls it."""
    ThreadpoolController().select(user_api="openmp").limit(limits=1)
