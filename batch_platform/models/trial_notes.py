"""What trials of model files found, kept in the home by hash, so that a file is tried once and not by each process.

A note counts only with a keyed hash under a key that this user alone can read. Who can write to the home but is another user cannot
make an untried file pass. The hash covers the place of the key on its disk too: a home that was copied tries every file again.
"""

import hashlib
import hmac
import json
import os
import secrets
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from batch_platform.warehouse.home import Home

_KEY_BYTES = 32


@dataclass(frozen=True)
class Outcome:
    """What a trial found."""

    problem: str | None  # a part of a sentence; None for a file that did no harm


def recalled(home: Home, trial: str) -> Outcome | None:
    """The outcome of a trial, given by a text that says what was tried and how; None if none is noted that can be trusted."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        key, note = _key(home), json.loads(_note(home, trial).read_text())
        if key is not None and hmac.compare_digest(note["proof"], _proof(key, trial, note["problem"])):
            return Outcome(note["problem"])
    return None


def remember(home: Home, trial: str, outcome: Outcome) -> None:
    """Note the outcome of a trial; nothing is noted where there is no home, or no key can be kept in it."""
    with suppress(OSError):
        if not home.root.is_dir():
            return
        home.trials.mkdir(mode=0o700, exist_ok=True)
        key = _key(home, make=True)
        if key is None:
            return
        note = {"problem": outcome.problem, "proof": _proof(key, trial, outcome.problem)}
        unfinished = home.trials / f".{secrets.token_hex(8)}"
        unfinished.write_text(json.dumps(note))
        unfinished.replace(_note(home, trial))


def _note(home: Home, trial: str) -> Path:
    return home.trials / f"{hashlib.sha256(trial.encode()).hexdigest()}.json"


def _proof(key: bytes, trial: str, problem: str | None) -> str:
    return hmac.new(key, json.dumps([trial, problem]).encode(), hashlib.sha256).hexdigest()


def _key(home: Home, *, make: bool = False) -> bytes | None:
    """The key, with the place of its file on the disk; None if there is none, or if anybody else could have read or made it."""
    path = home.trials / "key"
    if make:
        with suppress(FileExistsError):
            made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(made, "wb") as file:
                file.write(secrets.token_bytes(_KEY_BYTES))
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        facts, key = os.fstat(file.fileno()), file.read(_KEY_BYTES + 1)
    is_own = facts.st_uid == os.geteuid() and facts.st_nlink == 1 and stat.S_ISREG(facts.st_mode)
    if not is_own or stat.S_IMODE(facts.st_mode) & 0o077 or len(key) != _KEY_BYTES:
        return None
    return key + f"{facts.st_dev}:{facts.st_ino}".encode()
