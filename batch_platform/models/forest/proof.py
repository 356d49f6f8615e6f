"""The proof that the compiled form of a model gives the bits of the native one, before either serves.

It is made when a model is trained, on rows that it was not fitted on and on made ones, and once more on made ones when
a process loads the model to score with it: another processor may round otherwise. Where the trees are kept beside the
model, that second proof is against what the library said of the made rows in training.
"""

import hashlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.models.forest.compiled import (
    CompilablePredictor,
    CompiledPredictor,
    Parts,
    compile_parts,
    compile_predictor,
)
from batch_platform.models.forest.ensembles import Ensemble, NotCompilableError
from batch_platform.models.forest.kept import kept_file, read_kept
from batch_platform.models.native_threads import one_thread
from batch_platform.models.signature import Predictor

MOST_HELD_OUT = 20_000  # rows that a proof takes, evenly spaced
MADE_ROWS = 512
MOST_THRESHOLDS = 64  # of a column that made rows hit


@dataclass(frozen=True)
class Compiled:
    """What is known of the compiled form of a model."""

    kernel: str | None  # that evaluates its trees; None: its library does
    trees: int
    rows: int  # on which both gave the same bits
    reason: str | None  # why its library does


@dataclass(frozen=True)
class Proof:
    """What came of proving a model."""

    compiled: Compiled
    trees: bytes = b""  # the file that keeps them beside the model; nothing where they cannot be kept


NEVER_TRIED = Compiled(kernel=None, trees=0, rows=0, reason="trained before there were compiled forms")
NO_PARTS = Proof(Compiled(kernel=None, trees=0, rows=0, reason="only its library can tell what it does"))


def proven_predictor(native: CompilablePredictor) -> CompiledPredictor:
    """The compiled form, which agrees with the native one on made rows, on this machine.

    Raises:
        NotCompilableError: It does not agree, or cannot be made.
    """
    predictor = compile_predictor(native)
    for matrix in made_rows(predictor.parts):
        if not same_outcome(native, predictor, matrix):
            raise NotCompilableError(_differs(len(matrix)))
    return predictor


def proven_kept(file: bytes, native: Predictor) -> CompiledPredictor:
    """The compiled form of trees that were kept, which says of made rows, on this machine, what the library said.

    Raises:
        NotCompilableError: It says something else, or cannot be made.
    """
    kept = read_kept(file)
    predictor = compile_parts(kept.parts, native)
    for matrix, digest in zip(made_rows(kept.parts), kept.digests, strict=True):
        with np.errstate(all="ignore"):
            found = predictor.evaluated(matrix)
        if found is not None and _digest(found) != digest:
            raise NotCompilableError(_differs(len(matrix)))
    return predictor


def prove(native: CompilablePredictor, held_out: NDArray[np.float64]) -> Proof:
    """Compare the compiled form of a fitted model with the native one, bit for bit.

    Args:
        native: The fitted model.
        held_out: Rows that it was not fitted on [n, columns]; made ones are added: missing values, unseen categories,
            infinities, values at thresholds.
    """
    try:
        predictor = compile_predictor(native)
    except NotCompilableError as error:
        return Proof(Compiled(kernel=None, trees=0, rows=0, reason=str(error)))
    trees = len(predictor.parts.ensemble.trees)
    spaced = held_out[:: max(1, -(-len(held_out) // MOST_HELD_OUT))]
    compared, digests = 0, list[str]()
    for matrix in (spaced, *made_rows(predictor.parts)):
        with _quiet():
            found = _outcome(native, matrix)
            same = _same(found, _outcome(predictor, matrix))
        if not same:
            return Proof(Compiled(kernel=None, trees=trees, rows=compared, reason=_differs(len(matrix))))
        compared += len(matrix)
        digests.append(_digest(found))
    known = Compiled(kernel=predictor.flat.kernel_name, trees=trees, rows=compared, reason=None)
    return Proof(known, kept_file(predictor.parts, digests[1:]))


def _differs(rows: int) -> str:
    return f"the compiled form differs from the library's own result on some of {rows} rows"


def same_outcome(one: Any, other: Any, matrix: NDArray[np.float64]) -> bool:
    """Whether two predictors give the same bits, or the same error."""
    with _quiet():
        return _same(_outcome(one, matrix), _outcome(other, matrix))


@contextmanager
def _quiet() -> Generator[None]:
    with one_thread(), np.errstate(all="ignore"):  # casts warn of what the library then refuses
        yield


def _same(first: NDArray[Any] | str, second: NDArray[Any] | str) -> bool:
    if isinstance(first, str) or isinstance(second, str):
        return isinstance(first, str) and isinstance(second, str) and first == second
    return (first.dtype, first.shape, first.tobytes()) == (second.dtype, second.shape, second.tobytes())


def _digest(outcome: NDArray[Any] | str) -> str:
    """Of the bits of a prediction; the word `refused` for an error."""
    if isinstance(outcome, str):
        return "refused"
    return hashlib.sha256(f"{outcome.dtype.str} {outcome.shape} ".encode() + outcome.tobytes()).hexdigest()


def made_rows(parts: Parts, seed: int = 0) -> Iterator[NDArray[np.float64]]:
    """Matrices of the values on which a tree could go wrong, each of Fortran order.

    First plain numbers: thresholds, their neighbours in 64 and in 32 bits, zeros of both signs, categories known and
    unseen. Then the same with missing values, with values too large for 32 bits, and with infinities.
    """
    random = np.random.default_rng(seed)
    asked = parts.columns == parts.ensemble.features
    pools = _pools(parts.ensemble) if asked else [_ORDINARY] * parts.columns
    plain = np.asfortranarray(np.column_stack([random.choice(pool, MADE_ROWS) for pool in pools]))
    yield plain
    for odd in ([np.nan], [1e39, -1e39], [np.inf, -np.inf]):
        few = plain[: MADE_ROWS // 4].copy(order="F")
        at = random.random(few.shape) < 0.2  # noqa: PLR2004 - some in most rows, not all
        few[at] = random.choice(odd, int(at.sum()))
        yield few


_ORDINARY = np.array([0.0, -0.0, 1.0, -1.0, 0.5, 255.0, 256.0, 1e-40, -1e30, 1e30])


def _pools(ensemble: Ensemble) -> list[NDArray[np.float64]]:
    """By column, the values to try."""
    asked: list[list[NDArray[np.float64]]] = [[_ORDINARY] for _ in range(ensemble.features)]
    for tree in ensemble.trees:
        inner = (tree.left >= 0) & (tree.left_set < 0) & np.isfinite(tree.threshold)
        for at in np.unique(tree.feature[inner]).tolist():
            asked[at].append(tree.threshold[inner & (tree.feature == at)])
    for at, known in ensemble.categories.items():
        asked[at] += [known, known + 0.5, -known - 1.0, known + len(known)]
    pools: list[NDArray[np.float64]] = []
    for values in asked:
        cuts = np.unique(np.concatenate(values))
        cuts = cuts[:: len(cuts) // MOST_THRESHOLDS + 1]
        single = cuts.astype(np.float32)
        beside = [np.nextafter(kind, kind.dtype.type(way)) for kind in (cuts, single) for way in (-np.inf, np.inf)]
        halfway = (single.astype(np.float64) + beside[3].astype(np.float64)) / 2
        pools.append(np.concatenate([_ORDINARY, cuts, single, halfway, *beside], dtype=np.float64))
    return pools


def _outcome(predictor: Any, matrix: NDArray[np.float64]) -> NDArray[Any] | str:
    try:
        return predictor.predict(matrix)
    except ValueError as error:
        return str(error)
