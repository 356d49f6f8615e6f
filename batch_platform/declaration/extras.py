"""Optional libraries: each is an extra of this package, imported where it is used, and its absence names the extra."""

from collections.abc import Generator
from contextlib import contextmanager
from importlib import metadata

from batch_platform.declaration.errors import WrongUseError


@contextmanager
def needed(library: str, *, extra: str) -> Generator[None]:
    """Import an optional library in this block; raises WrongUseError, with the extra that installs it, if it is missing."""
    try:
        yield
    except ImportError as error:
        raise missing(library, extra, str(error)) from error


def missing(library: str, extra: str, reason: str = "it is not installed") -> WrongUseError:
    """The error for an optional library that is not there."""
    msg = f"{library} is needed here, and cannot be imported ({reason})."
    return WrongUseError(msg, hint=f"pip install 'batch-platform[{extra}]'")


def require_installed(library: str, *, extra: str) -> None:
    """Raise WrongUseError, with the extra that installs it, if an optional library is missing; it is not imported."""
    if installed(library) is None:
        raise missing(library, extra)


def installed(library: str) -> str | None:
    """The installed version of a library or of its build for the CPU; None if neither is installed."""
    for distribution in (library, f"{library}-cpu"):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None
