"""Libraries that only some kinds of models need: which version is installed, and what to install where none is."""

from collections.abc import Generator
from contextlib import contextmanager
from importlib import metadata

from batch_platform.declaration.errors import WrongUseError

_BUILDS = {"tensorflow": ("tensorflow", "tensorflow-cpu"), "xgboost": ("xgboost", "xgboost-cpu")}


@contextmanager
def needed(library: str, *, extra: str) -> Generator[None]:
    """Import a library in this block; where it is missing, say what needs it and what brings it.

    Raises:
        WrongUseError: It cannot be imported.
    """
    try:
        yield
    except ImportError as error:
        raise missing(library, extra, str(error)) from error


def missing(library: str, extra: str, why: str = "it is not installed") -> WrongUseError:
    """The error that tells of a library that is not there."""
    msg = f"A model of the flavour {extra!r} needs {library}, which cannot be imported ({why})."
    return WrongUseError(msg, hint=f"pip install 'batch-platform[{extra}]'")


def installed(library: str) -> str | None:
    """The version of a library, whichever of its builds is installed; None where none is."""
    for distribution in _BUILDS.get(library, (library,)):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None
