"""Any error, as one of this project: what happened in a sentence for the person who declared the pipeline.

Dagster wraps the errors raised while it loads and runs definitions, so the cause is looked up in the chain of an error.
"""

import errno
import re
import sqlite3
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from batch_platform.declaration.errors import BatchPlatformError, WrongUseError, shortened

if TYPE_CHECKING:
    from pydantic import ValidationError
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ROOM_HINT = "make room on the disk of the home, and where Dagster keeps its records; what was committed stays. Then run it again."
_TOO_LITTLE_MEMORY = re.compile(
    r"out of memory|cannot allocate memory|bad_alloc|allocation fail|failed to map segment", re.IGNORECASE
)
_OF_MEMORY = (sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_IOERR_NOMEM)
_RECORDS_HINT = (
    "predictions, models and tables are whole, and batch-platform status reads them meanwhile. Start the database that keeps the "
    "records, or move the damaged files out of the folder dagster of the home: the next run records there what was done, and "
    "schedules are switched on again in the UI if theirs were lost."
)
# DuckDB's messages about a file that is gone, before or while it is opened.
LOST_FILE = re.compile(r"(?:No files found|Cannot open file) .*/lake/(\w+)/(\w+)/([^/]+)/\w+\.parquet")
_WANTED = {  # the expected type, by Pydantic's name for the error
    "string_type": "a text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a block of keys"),
}
_KINDS: dict[type, str] = {str: "a text", list: "a list", dict: "a block of keys"}
_OF_KEYS = {
    "missing": "this key is required",
    "extra_forbidden": "unknown key: `type` names the component, and the keys of a pipeline belong below `attributes`",
}
_READ_FROM_A_WORD = ("string_type", "literal_error", "int_type", "float_type")


def explained(error: BaseException, *, hint: str | None = None) -> BatchPlatformError:
    """Give the error of this project in the chain of an error, or one made of its innermost cause; `hint` is for the latter."""
    from pydantic import ValidationError

    chain = list(_chain(error))
    if (ours := _ours(chain)) is not None:
        return ours
    made: BatchPlatformError | None = None
    for cause in chain:
        if made is None and isinstance(cause, ValidationError):
            made = WrongUseError(" ".join(_declared_wrongly(cause)))
    if made is None:
        innermost = chain[-1]
        text = f"{type(innermost).__name__}: {innermost}".rstrip(" :.")
        if any(map(is_want_of_memory, chain)):
            text = f"There is too little memory: {text}"
            hint = "give the process more memory; what was committed stays. Then run it again."
        elif any(map(_is_want_of_room, chain)):
            text, hint = f"A file cannot grow, probably because a disk is full: {text}", _ROOM_HINT
        elif lost := LOST_FILE.search(text):
            text = f"{lost[1]}, partition {lost[3]}: a file of its {lost[2]} is gone: {text}"
            hint = (
                f"batch-platform run {lost[1]} scores it again; if the home was moved, it publishes for the new place."
            )
        elif are_dagsters_records(error):
            hint = "another process writes there: run it again." if "is locked" in text else _RECORDS_HINT
            text = f"Dagster's own records cannot be used: {text}"
        made = BatchPlatformError(f"{text}.", hint=hint)
    made.__cause__ = error
    return made


def are_dagsters_records(error: BaseException) -> bool:
    """Tell whether an error is about the databases in which Dagster keeps its records; this project opens no others this way."""
    return any(
        isinstance(cause, sqlite3.DatabaseError) or type(cause).__module__.startswith("sqlalchemy.")
        for cause in _chain(error)
    )


def is_want_of_memory(error: BaseException) -> bool:
    """Tell whether an error came of too little memory."""
    code = getattr(error, "sqlite_errorcode", getattr(error, "errno", None))
    of_kind = isinstance(error, sqlite3.Error) and code in _OF_MEMORY
    of_system = isinstance(error, OSError) and code == errno.ENOMEM
    return isinstance(error, MemoryError) or of_kind or of_system or _TOO_LITTLE_MEMORY.search(str(error)) is not None


def _is_want_of_room(error: BaseException) -> bool:
    """Tell whether a disk or a quota may be full; SQLite, in which Dagster keeps its records, often says only that writing failed."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)  # an error that Python itself raises has no code
        return code is not None and code & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
    return isinstance(error, OSError) and error.errno in _NO_ROOM


def _ours(chain: list[BaseException]) -> BatchPlatformError | None:
    """The innermost error of this project, or the one raised directly from it to add where it happened."""
    innermost: BatchPlatformError | None = None
    for cause in chain:
        if isinstance(cause, BatchPlatformError) and not (innermost is not None and innermost.__cause__ is cause):
            innermost = cause
    return innermost


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes, the innermost last.

    Dagster raises the error of a step while it handles its own error about it, so that each is a cause of the other: the error
    that is met again is the innermost.
    """
    cause: BaseException | None = error
    met = set[int]()
    while cause is not None:
        yield cause
        if id(cause) in met:
            return
        met.add(id(cause))
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _declared_wrongly(error: "ValidationError") -> Iterator[str]:
    """Each wrong key with its file and line, as annotated by Dagster."""
    for wrong in error.errors():
        path, _, position = ".".join(str(part) for part in wrong["loc"]).partition(" at ")
        message = _plainly(wrong).rstrip(".")
        if isinstance(wrong["input"], bool) and wrong["type"] in _READ_FROM_A_WORD:
            message += "; YAML reads words such as no, off and yes as truth values: put the word in quotes"
        message = f"{path}: {message}{'' if message.endswith('?') else '.'}"
        yield f"{position}: {message}" if position else message


def _plainly(wrong: Mapping[str, Any]) -> str:
    """Say what is wrong with a value, in the words of this project where Pydantic has its own."""
    kind, value = wrong["type"], wrong["input"]
    if kind == "literal_error":
        return f"must be {wrong['ctx']['expected']}, not {shortened(repr(value))}"
    if kind in _WANTED:
        shown = "but is empty" if value is None else f"not {_KINDS.get(type(value), str(value).lower())}"
        return f"must be {_WANTED[kind]}, {shown}"
    text = str(_OF_KEYS.get(kind) or wrong["msg"]).removeprefix("Value error, ").replace(" after validation", "")
    return re.sub("^(Input|String|List|Dictionary) should ", "must ", text)
