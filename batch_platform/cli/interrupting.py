"""An interruption that is lost is sent again, so that it ends the command.

The handler of a signal raises its exception in whatever Python code runs next. Inside a callback from C, a finalizer or a `__del__`,
Python prints that exception and goes on: LLVM calls such a callback after each function that it compiles for Numba, and the pending
signal is handled there.
"""

import signal
import sys
import threading
from types import TracebackType

_LATER = 0.05  # seconds after which the callback is over


def resend_lost_interruptions() -> None:
    """Interrupt the main thread again whenever Python drops or only prints the exception that stands for a signal.

    Errors of finalizers of what was interrupted are dropped; all others are printed as before.
    """
    unraisable_hook, print_hook = sys.unraisablehook, sys.excepthook

    def on_unraisable(dropped: "sys.UnraisableHookArgs") -> None:
        from batch_platform.sources.interruption import was_interrupted  # which imports DuckDB

        if _stands_for_a_signal(dropped.exc_type):
            _send_again()
        elif not was_interrupted():
            unraisable_hook(dropped)

    def on_printed(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if _stands_for_a_signal(kind):
            _send_again()
        else:
            print_hook(kind, error, traceback)

    sys.unraisablehook, sys.excepthook = on_unraisable, on_printed


def _stands_for_a_signal(kind: type[BaseException]) -> bool:
    """Tell KeyboardInterrupt, and the exception that Dagster's handler raises within a run, from errors."""
    return not issubclass(kind, (Exception, GeneratorExit, SystemExit))


def _send_again() -> None:
    """Interrupt the main thread from another one, once it is out of the code that lost the exception; once for several losses.

    By SIGTERM: a shell lets its background processes ignore SIGINT.
    """
    if any(isinstance(thread, _Sender) for thread in threading.enumerate()):
        return
    sender = _Sender(_LATER, signal.pthread_kill, (threading.main_thread().ident, signal.SIGTERM))
    sender.daemon = True
    sender.start()


class _Sender(threading.Timer):
    """Sends the signal."""
