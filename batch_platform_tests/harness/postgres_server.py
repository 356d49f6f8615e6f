"""A real PostgreSQL on this machine, for records of Dagster and for sources: one process below a folder of its own."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDERS_VARIABLE = "POSTGRESQL_FOLDERS"  # where each installed version has a folder
USERS = ("postgres", "nobody")  # one of whom runs the server where the tests run as root, whom it refuses
NO_WAITING = ("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")


def installed_postgres() -> Path | None:
    """The folder with the programs of the newest PostgreSQL; None without one."""
    folders = Path(os.environ.get(FOLDERS_VARIABLE, "/usr/lib/postgresql")).glob("*/bin/postgres")
    newest = sorted(folders, key=lambda program: int(program.parts[-3]))[-1:]
    on_path = shutil.which("postgres")
    return newest[0].parent if newest else Path(on_path).parent if on_path else None


@dataclass
class Server:
    """A server with one database, which tests may kill and start again."""

    address: str
    command: list[Any]
    ready: list[Any]
    options: dict[str, Any]
    process: subprocess.Popen[Any] | None = None

    def start(self) -> None:
        self.process = process = subprocess.Popen(
            self.command, **dict[str, Any](self.options, stdout=subprocess.DEVNULL)
        )
        while subprocess.run(self.ready, check=False).returncode:
            assert process.poll() is None, "the server has ended"
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it by a signal: SIGINT ends the connections, then itself; SIGKILL all of its processes, which would go on for a while."""
        if self.process is not None:
            others = _children_of(self.process.pid) if how == signal.SIGKILL else []
            self.process.send_signal(how)
            self.process.wait()
            for child in others:
                with suppress(ProcessLookupError):
                    os.kill(child, how)


def _children_of(parent: int) -> list[int]:
    """The ids of the processes that a process has started, one for each connection among them."""
    children: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]) == parent:
                children.append(int(entry.name))
    return children


@contextmanager
def postgres() -> Generator[str]:
    """Run a server until the block ends; yields the address of its empty database."""
    with postgres_server() as server:
        yield server.address


@contextmanager
def postgres_server() -> Generator[Server]:
    """Run a server until the block ends."""
    programs, user = installed_postgres(), _user()
    assert programs, "there is no PostgreSQL; python -m batch_platform_tests installs one"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(
        prefix="postgres-", dir="/tmp"
    ) as folder:  # outside of pytest's, which root alone may enter
        data, options = (
            Path(folder, "data"),
            dict[str, Any](cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT),
        )
        if user is not None:
            os.chown(folder, user.pw_uid, user.pw_gid)
            options |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        made = subprocess.run(
            [programs / "initdb", "-D", data, "-U", "dagster", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"],
            check=False,
            **options,
        )
        assert made.returncode == 0, made.stdout
        server = Server(
            f"postgresql+psycopg2://dagster@127.0.0.1:{port}/postgres",
            [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", folder, *NO_WAITING],
            [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)],
            options,
        )
        try:
            server.start()
            yield server
        finally:
            server.stop()


def _user() -> pwd.struct_passwd | None:
    """Who runs the server; None for the user of this process."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    return next(known[name] for name in USERS if name in known)
