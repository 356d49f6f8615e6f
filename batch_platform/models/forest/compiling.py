"""When compiled code is compiled: once on a machine for each function, whatever process comes first."""

# pyright: basic, reportMissingImports=none
# numba publishes no types.

from contextlib import suppress
from threading import Lock
from typing import Any

from numba import types

MATRIX = types.Array(types.float64, 2, "A", readonly=True)  # of any layout
OUT = types.Array(types.float64, 2, "A")
OPTIONS = {"nogil": True, "error_model": "numpy", "boundscheck": False}
_COMPILING = Lock()


def make_ready(function: Any, *signature: Any) -> None:
    """Compile a function for the one signature that it has, or load it where some process has left it.

    Where there is no folder that may be written, the compiled code lives as long as the process.
    """
    with _COMPILING:
        if not function.signatures:
            with suppress(RuntimeError):
                function.enable_caching()
            function.compile(signature)
            function.disable_compile()
