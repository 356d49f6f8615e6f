"""Processes that begin with everything imported, which takes 2 to 4 s of CPU in a new interpreter.

They run `batch-platform`, `dagster` or a module (`python -m`), as the same arguments would in a new interpreter.

Each is a process of its own, with its own id, environment, folder and files, which signals reach as usual, SIGKILL among
them. Its parent has imported what commands need and never starts a thread. It forks a keeper for each command, which forks
the command and reports how it ended.

Dagster's own processes start others: servers of code, runs and steps. Before such a process begins, it forks a parent for
them, and hands it each call of `fork_exec` that would start one of those. As with a new interpreter, what they start is a
child of the process that asked for it. `test_dg_launch.py` and `test_packaging.py` start Dagster's processes as they are.
"""

import _posixsubprocess
import atexit
import ctypes
import fcntl
import gc
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
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
    "scipy.special",  # to name its functions, skops searches all modules imported before it
    *(f"{cli.__name__}.{module.name}" for module in pkgutil.iter_modules(cli.__path__)),
    "batch_platform.components",
    "batch_platform.pipeline.pipeline",
    "dagster._cli",
    "dagster._daemon.cli",
    "dagster_webserver.cli",
    "sklearn.ensemble",
    "sklearn.metrics",
    "skops.io",
)
ROOT = Path(__file__).parents[1]
REQUEST_BYTES = 2**20
OF_DAGSTER = ("dagster", "dagster._daemon", "dagster_webserver", "batch_platform.cli.guard")
BECOME_CHILD_SUBREAPER = 36  # of prctl: a descendant whose parent ends becomes a child of this process
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
        _live(request, dict(enumerate(files)), report)
    for handle in files:
        os.close(handle)
    _, status, used = os.wait4(pid, 0)
    os.write(report, f"{status} {used.ru_maxrss}".encode())
    os._exit(0)


def _fork_from(parent: socket.socket, fork_exec: Callable[..., int]) -> Callable[..., int]:
    """A `fork_exec` that has the parent fork what Dagster's processes start, and starts anything else as before."""
    asking = threading.Lock()

    def fork_or_exec(*call: Any) -> int:
        arguments, _, _, passed, folder, environment, *handles = call[:12]
        arguments = [os.fsdecode(word) for word in arguments]
        of_dagster = arguments[1:2] == ["-m"] and arguments[2] in OF_DAGSTER
        if arguments[0] != sys.executable or not (of_dagster or "--multiprocessing-fork" in arguments):
            return fork_exec(*call)
        # only an exec that fails would write to the last one
        files = {handle: handle for handle in passed if handle != call[13]}
        for standard, given in enumerate((handles[0], handles[3], handles[5])):
            files[standard] = standard if given == -1 else given
        request = {
            "arguments": arguments,
            "folder": os.fsdecode(folder or Path.cwd()),
            "environment": dict(os.environ)
            if environment is None
            else dict(os.fsdecode(variable).split("=", 1) for variable in environment),
            "new_session": bool(call[15]),
            "files": list(files),
        }
        with asking:
            socket.send_fds(parent, [json.dumps(request).encode()], list(files.values()))
            return int(parent.recv(64))

    return fork_or_exec


def _start_parent(inherited: set[int]) -> None:
    """Fork a parent of what this process starts, while it has no thread; it ends with this process."""
    ctypes.CDLL(None).prctl(BECOME_CHILD_SUBREAPER, 1, 0, 0, 0)
    own, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not os.fork():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with the process whose children it forks
        _show([sys.executable, "-m", "batch_platform_tests.warm"])
        own.close()
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in range(3):
            os.dup2(nothing, standard)
        for handle in (inherited | {nothing}) - {0, 1, 2}:
            os.close(handle)
        _serve(theirs)
    theirs.close()
    _posixsubprocess.fork_exec = subprocess._fork_exec = _fork_from(own, _posixsubprocess.fork_exec)


def _serve(control: socket.socket) -> NoReturn:
    """Fork a process for each request, which becomes a child of the process that asks: the keeper between them ends at once."""
    while True:
        request, handles, *_ = socket.recv_fds(control, REQUEST_BYTES, 64)
        if not request:
            os._exit(0)
        asked = json.loads(request)
        reader, report = os.pipe()
        keeper = os.fork()
        if not keeper:
            control.close()
            os.close(reader)
            if not os.fork():
                _live(asked, dict(zip(asked["files"], handles, strict=True)), report)
            os._exit(0)
        for handle in (report, *handles):
            os.close(handle)
        os.waitpid(keeper, 0)
        control.send(os.read(reader, 64))
        os.close(reader)


def _live(request: dict[str, Any], files: dict[int, int], report: int) -> NoReturn:
    """Be the command, from here on as in an interpreter that has just started.

    Args:
        request: What it runs.
        files: Its open files: by the number that each has in the command, the number that it has now.
        report: Where it writes its id.
    """
    arguments = request["arguments"]
    _show(arguments)
    if request["new_session"]:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    beyond = max(files) + 1
    lifted = {number: fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, beyond) for number, handle in files.items()}
    lifted_report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, beyond)
    for handle in {report, *files.values()}:
        os.close(handle)
    for number, handle in lifted.items():
        os.dup2(handle, number)
        os.close(handle)
    if arguments[0] != COMMAND or "ui" in arguments:  # of our own commands only `ui` starts processes of Dagster
        _start_parent({lifted_report, *files})
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = arguments
    sys.path[0] = request["folder"] if sys.argv[0] == sys.executable else str(Path(sys.argv[0]).parent)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    os.write(lifted_report, str(os.getpid()).encode())
    os.close(lifted_report)
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
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _show(arguments: list[str]) -> None:
    """Let `ps` and `/proc` show these arguments, as far as those of the parent leave room."""
    _, _, fields = Path("/proc/self/stat").read_text().rpartition(")")
    start, end = map(int, fields.split()[45:47])
    shown = b"\0".join(map(os.fsencode, arguments))[: end - start - 1]
    ctypes.memmove(start, shown.ljust(end - start, b"\0"), end - start)


def _run() -> None:
    """Run what `sys.argv` names."""
    if sys.argv[:2] == [sys.executable, "-m"]:
        _, _, module, *sys.argv[1:] = sys.argv
        if not hasattr(sys.modules.get(module), "__path__"):
            sys.modules.pop(module, None)  # a new interpreter has not imported what it is to run
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    main_module = ModuleType("__main__")
    sys.modules["__main__"] = main_module
    if sys.argv[0] == sys.executable:
        code = sys.argv.index("-c") + 1  # behind options of the interpreter
        program, sys.argv = sys.argv[code], ["-c", *sys.argv[code + 1 :]]
        exec(program, main_module.__dict__)
        return
    main_module.__file__ = sys.argv[0]  # which processes that it spawns read, as those of a script do
    if sys.argv[0] == COMMAND:
        cli.process()
    else:
        import_module("dagster._cli").main()


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
