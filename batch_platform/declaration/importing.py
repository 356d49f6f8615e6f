"""Import what is named elsewhere: functions that a declaration names as `module.function`, and optional libraries, each an extra of this package."""

import importlib
import inspect
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from batch_platform.declaration.errors import WrongUseError, did_you_mean


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


def import_function(dotted: str, key: str, kind: type | tuple[()] = ()) -> Callable[..., Any]:
    """Import `module.function`, or `module.NAME` of a record of some kind.

    Raises WrongUseError, which names the key of the YAML, if it does not exist.
    """
    module_name, _, name = dotted.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        msg = f"{key}: the module {module_name!r} cannot be imported ({error})."
        raise WrongUseError(msg, hint="write it as 'package.module.function', importable from the project.") from error
    function: Any = getattr(module, name, None)
    if not callable(function) and not isinstance(function, kind):
        public = [member for member in vars(module) if not member.startswith("_")]
        msg = f"{key}: {module_name!r} has no class or function {name!r}."
        raise WrongUseError(msg, hint=did_you_mean(name, public))
    return function


def parameters_of(function: Callable[..., Any]) -> list[str]:
    """The names of a function's parameters; none if Python does not know them."""
    try:
        return list(inspect.signature(function).parameters)
    except ValueError:  # a function written in C has no signature
        return []


def source_code(dotted: str, key: str) -> str:
    """The source text of the module a function is named in and of the module that defines it, used as its version."""
    function = import_function(dotted, key)
    modules = (sys.modules[dotted.rpartition(".")[0]], inspect.getmodule(function))
    of_file = {str(module.__file__): module for module in modules if module and getattr(module, "__file__", None)}
    return "\0".join(_content(module, file).decode(errors="replace") for file, module in of_file.items())


def _content(module: ModuleType, file: str) -> bytes:
    """Read the file of a module, which may lie in an archive that was sent to a cluster."""
    read: Callable[[str], bytes] | None = getattr(module.__loader__, "get_data", None)
    return Path(file).read_bytes() if read is None else read(file)
