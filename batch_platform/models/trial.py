"""Open a model file that was made elsewhere, and score with it, in a process of its own before this process reads it.

Libraries of models trust their files: a damaged or hostile one can crash them, never end, or take all memory. A process tries the
same bytes once.
"""

import os
import re
import resource
import subprocess
import sys
from functools import cache
from hashlib import sha256
from pathlib import Path

from batch_platform.declaration.errors import DataError
from batch_platform.models.flavours.flavour import Flavour

LIMIT = "BATCH_PLATFORM_TRIAL_SECONDS"  # environment variable with the limit of processor time
DEFAULT_LIMIT, SECONDS, MEMORY_BYTES = 60, 600, 4 << 30
_MEMORY, _ROWS = 3, 4  # exit code of a child that ran out of memory; rows that it scores
_NO_MEMORY = re.compile(
    r"bad_alloc|out of memory|\bOOM\b|RESOURCE_EXHAUSTED|unable to allocate|failed to allocate", re.IGNORECASE
)


def require_harmless(flavour: Flavour, reference: str) -> None:
    """Raise DataError if opening a file, or scoring with it, ends the process that does so or exceeds the limits of a trial."""
    content = sha256(Path(reference).read_bytes()).hexdigest()
    problem = _problem(flavour.name, reference, content, os.environ.get(LIMIT) or str(DEFAULT_LIMIT))
    if problem is not None:
        msg = f"model.import: {reference} {problem}; it is not opened here."
        raise DataError(msg, hint="it is damaged or hostile: save it again, and import only what you trust.")


@cache
def _problem(flavour: str, reference: str, content: str, limit: str) -> str | None:  # noqa: ARG001 - other bytes, another trial
    """Say what goes wrong in a child process; None if nothing does, or the library itself says what."""
    command = [sys.executable, "-m", __name__, flavour, reference, limit]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    nothing = subprocess.DEVNULL
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            command, env=environment, stdin=nothing, stdout=nothing, stderr=nothing, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"does not end within {SECONDS} seconds"
    code = done.returncode
    if code == _MEMORY:
        return f"needs more than {MEMORY_BYTES >> 30} GiB of memory to be opened"
    if code == -9 or code == -24:  # noqa: PLR1714, PLR2004 - SIGKILL and SIGXCPU, by either of which the limit is kept
        return f"needs more than {limit} seconds to score {_ROWS} rows"
    return f"crashes its library ({flavour}, signal {-code})" if code < 0 else None


def _try(flavour: str, reference: str) -> None:
    """Read the file and score a few rows; that the library refuses one or the other is no matter of this process."""
    import numpy as np

    from batch_platform.models.contract import Contract, ContractColumn, Signature
    from batch_platform.models.flavours.known import FLAVOURS

    kind = FLAVOURS[flavour]
    model = kind.read(reference, {})
    columns = [
        ContractColumn(
            taken.name or f"column {at}",
            "category" if taken.kind == "text" else "float",
            nullable=True,
            categories=taken.categories,
        )
        for at, taken in enumerate(model.inputs or ())
    ]
    classes = list(model.classes or ())
    predictor = kind.reloaded(model.model, Signature(model.task or "regression", classes, Contract(tuple(columns))))
    for value in (0.0, 1.0, -1e9, 1e9):
        predictor.predict(np.full((_ROWS, len(columns)), value))


def main(flavour: str, reference: str, limit: str) -> int:
    """Try a file within so many seconds of processor time; returns the exit code."""
    resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit)))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        _try(flavour, reference)
    except MemoryError:
        return _MEMORY
    except Exception as error:  # noqa: BLE001 - whatever the library says of the file, it says again where it is read
        return _MEMORY if _lacks_memory(error) else 0
    return 0


def _lacks_memory(error: BaseException | None) -> bool:
    """Tell whether an error, or an error that it was raised from, says that the limit of memory was reached."""
    while error is not None:
        if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


if __name__ == "__main__":
    os._exit(main(*sys.argv[1:]))
