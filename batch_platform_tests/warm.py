"""Processes that begin with everything imported, which takes 2 to 4 s of CPU in a new interpreter.

They run `batch-platform`, `dagster` or a module of this project (`python -m`), as the same arguments would in a new interpreter.

Each is a process of its own, with its own id, environment, folder and files, which signals reach as usual, SIGKILL among
them. Its parent has imported what commands need and never starts a thread. It forks a keeper for each command, which forks
the command and reports how it ended.
"""

import atexit
import gc
import json
import os
import pkgutil
import runpy
import select
import socket
import subprocess
import sys
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from batch_platform import cli
from batch_platform_tests.faults.nursery import compile_trees, parse_queries

COMMAND = str(Path(sys.executable).with_name("batch-platform"))
DAGSTER = str(Path(sys.executable).with_name("dagster"))
IMPORTED = (
    *(f"{cli.__name__}.{module.name}" for module in pkgutil.iter_modules(cli.__path__)),
    "batch_platform.components",
    "batch_platform.pipeline.pipeline",
    "dagster._cli",
    "sklearn.ensemble",
    "sklearn.metrics",
    "skops.io",
)
ROOT = Path(__file__).parents[1]
REQUEST_BYTES = 2**20
_parents = list[tuple["subprocess.Popen[bytes]", socket.socket]]()


class WarmCommand(subprocess.Popen[str]):
    """A `Popen` of a command, forked from a process that has imported it."""

    peak_mib = 0.0  # of its resident memory, once it has ended; with what was imported before it began

    def __init__(self, arguments: list[str], **options: Any) -> None:
        super().__init__(arguments, text=True, **options)

    def _execute_child(self, args: Any, *rest: Any) -> None:
        _, _, _, _, folder, environment, _, _, _, *handles, _, _, _, _, _, new_session, _ = rest
        self._end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = {
            "arguments": args,
            "folder": str(folder or Path.cwd()),
            "environment": environment or dict(os.environ),
            "new_session": bool(new_session),
        }
        for_child = (handles[0], handles[3], handles[5])
        files = [standard if given == -1 else given for standard, given in enumerate(for_child)]
        socket.send_fds(_parent(), [json.dumps(request).encode()], [theirs.fileno(), *files])
        theirs.close()
        self.pid = int(self._end.recv(64))
        self._child_created = True
        self._close_pipe_fds(*handles)

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        ended, _, _ = select.select([self._end], [], [], 0 if wait_flags & os.WNOHANG else None)
        if not ended:
            return (0, 0)
        with self._end:
            status, peak = map(int, self._end.recv(64).split())
        self.peak_mib = peak / 1024
        return (self.pid, status)

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        with self._waitpid_lock:
            if self.returncode is None:
                pid, status = self._try_wait(os.WNOHANG)
                if pid:
                    self._handle_exitstatus(status)
        return self.returncode


def _parent() -> socket.socket:
    """The way to the parent of this process's commands, which is started with the first of them."""
    if not _parents:
        own, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
            command = [sys.executable, "-m", __name__, str(theirs.fileno())]
            process = subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()])
        _parents.append((process, own))
    return _parents[0][1]


@atexit.register
def _end_parent() -> None:
    while _parents:
        process, own = _parents.pop()
        own.close()
        process.wait()


def main(control: socket.socket) -> None:
    """Import what commands need, and fork a keeper for each request until the other end is closed."""
    for module in IMPORTED:
        import_module(module)
    compile_trees()
    parse_queries()
    gc.freeze()  # a search for garbage would copy the pages that all children share
    while True:
        request, handles, *_ = socket.recv_fds(control, REQUEST_BYTES, 4)
        if not request:
            return
        if not os.fork():
            control.close()
            _keep(json.loads(request), *handles)
        for handle in handles:
            os.close(handle)
        _reap()


def _reap() -> None:
    """Take leave of the keepers that have ended."""
    with suppress(ChildProcessError):
        while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG):
            pass


def _keep(request: dict[str, Any], report: int, *files: int) -> NoReturn:
    """Fork the command, wait for it, and report its status as `os.waitpid` gives it and its peak memory in KiB."""
    pid = os.fork()
    if not pid:
        _live(request, report, *files)
    for handle in files:
        os.close(handle)
    _, status, used = os.wait4(pid, 0)
    os.write(report, f"{status} {used.ru_maxrss}".encode())
    os._exit(0)


def _live(request: dict[str, Any], report: int, *files: int) -> NoReturn:
    """Be the command, from here on as in an interpreter that has just started."""
    if request["new_session"]:
        os.setsid()
    for standard, handle in enumerate(files):
        os.dup2(handle, standard)
        os.close(handle)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["arguments"]
    sys.path[0] = request["folder"] if sys.argv[0] == sys.executable else str(Path(sys.argv[0]).parent)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    os.write(report, str(os.getpid()).encode())
    os.close(report)
    try:
        _run()
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - as the interpreter does it
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _run() -> None:
    """Run what `sys.argv` names."""
    if sys.argv[0] == sys.executable:
        _, _, module, *sys.argv[1:] = sys.argv
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    main_module = ModuleType("__main__")
    main_module.__file__ = sys.argv[0]  # which processes that it spawns read, as those of a script do
    sys.modules["__main__"] = main_module
    if sys.argv[0] == COMMAND:
        cli.process()
    else:
        import_module("dagster._cli").main()


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
