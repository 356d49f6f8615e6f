"""Models whose trees are evaluated without their library, and the proof that both ways give the same bits.

Compiled code evaluates them; for few rows NumPy does, since importing a compiler takes longer. The proof is made when a model is
trained, on rows that it was not fitted on and on generated ones. It is repeated on generated rows when a process loads the model
for scoring, because another processor may round differently. Where the trees are stored beside the model, the second proof compares
with what the library answered for these rows in training.

Preprocessing in front of the trees stays scikit-learn's own. Every matrix that the model's library refuses, or that is not plain
numbers, goes the native way, to the same result or the same error.
"""

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from batch_platform.kernels.forest.ensembles import (
    LEAF,
    MOST_CATEGORIES,
    Ensemble,
    NotCompilableError,
    Parts,
    Tree,
    as_decisions,
    read_trees,
    require,
    require_sound,
    trees_file,
)
from batch_platform.kernels.native_threads import one_thread
from batch_platform.kernels.predictor import Predictor, decisions, in_blocks

if TYPE_CHECKING:  # it imports numba
    from batch_platform.kernels.forest.arrays import Flat
# Rows times trees from which compiled code is worth loading: importing numba and loading a kernel takes about 0.4 s of one
# core, and scikit-learn needs some 40 ns per row and tree, which is 0.8 s for this many. The first process on a machine
# compiles for about 1.5 s instead, once.
WORTH_COMPILING = 20_000_000
# Rows times trees up to which NumPy is quicker. It needs 0.15 µs for each; importing numba and loading a kernel takes 0.7 s of one core.
MOST_VISITS = 2_000_000
MAX_HELD_OUT = 20_000  # rows used for a proof, evenly spaced
GENERATED_ROWS = 512
MAX_THRESHOLDS = 64  # per column, that generated rows hit
ODD_SHARE = 0.2  # share of missing or infinite values in the odd matrices: some in most rows
_ORDINARY = np.array([0.0, -0.0, 1.0, -1.0, 0.5, 255.0, 256.0, 1e-40, -1e30, 1e30])


@runtime_checkable
class CompilablePredictor(Predictor, Protocol):
    """A predictor of the model's own library that can describe what it computes."""

    def parts(self) -> Parts:
        """Describe it; raises NotCompilableError if it is not a known tree ensemble."""
        ...


@dataclass(frozen=True)
class TreePredictor:
    """Returns the bits that the native predictor returns, but sooner; safe to call from several threads at once."""

    native: Predictor
    parts: Parts
    flat: "Flat | PlainTrees"  # evaluates the trees

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        """Return class probabilities [rows, classes], or values or segments [rows]."""
        scores = self.evaluated(matrix)
        return self.native.predict(matrix) if scores is None else scores

    def decide(self, matrix: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Return the decision function of a classifier that has one: the sums of its trees."""
        sums = self._sums(matrix)
        return decisions(self.native, matrix) if sums is None else as_decisions(sums, self.parts.ensemble.finish)

    def evaluated(self, matrix: NDArray[np.float64]) -> NDArray[Any] | None:
        """Evaluate the trees; None for a matrix that they leave to the library."""
        sums = self._sums(matrix)
        return None if sums is None else np.asarray(self.parts.ensemble.finish(sums))

    def _sums(self, matrix: NDArray[np.float64]) -> NDArray[np.float64] | None:
        ensemble, inputs = self.parts.ensemble, inputs_of(self.parts, matrix)
        if inputs.dtype != np.float64 or inputs.shape[1:] != (ensemble.features,) or len(inputs) <= 1:
            return None  # a single row too: `SklearnPredictor` says why
        sums = ensemble.start(inputs)
        return sums if self.flat.add(inputs, sums) else None


def inputs_of(parts: Parts, matrix: NDArray[np.float64]) -> NDArray[Any]:
    """The columns that trees are given [rows, features], made by the preprocessing in front of them."""

    def prepared(block: Any) -> Any:
        for step in parts.steps:
            block = step(block)
        return block.toarray() if hasattr(block, "toarray") else block  # an encoder may return a sparse matrix

    return in_blocks(matrix, prepared) if parts.steps else matrix


@dataclass(frozen=True)
class Compilation:
    """The manifest's statement about the compiled form of a model."""

    kernel: str | None  # evaluates its trees; None if its library does
    trees: int
    rows: int  # number of rows on which both forms gave the same bits
    reason: str | None  # why its library evaluates it; None if a kernel does


@dataclass(frozen=True)
class Proof:
    """The result of comparing both forms of a model."""

    compiled: Compilation
    trees: bytes = b""  # the file that stores the trees beside the model; empty if they cannot be stored


NOT_TREES = Proof(Compilation(kernel=None, trees=0, rows=0, reason="only its library knows how to evaluate it"))


def compile_predictor(native: CompilablePredictor) -> TreePredictor:
    """Compile a fitted model, or load what was compiled before; raises NotCompilableError if the library has to evaluate it."""
    return _compiled(native.parts(), native)


def _compiled(parts: Parts, native: Predictor) -> TreePredictor:
    from batch_platform.kernels.forest.arrays import flatten

    flat = flatten(parts.ensemble)
    flat.prepare()
    return TreePredictor(native, parts, flat)


def proven_predictor(native: CompilablePredictor) -> TreePredictor:
    """The compiled form of a model; raises NotCompilableError if it differs from the native one on generated rows here."""
    predictor = compile_predictor(native)
    for matrix in generated_rows(predictor.parts):
        require(same_outcome(native, predictor, matrix), _differs(len(matrix)))
    return predictor


def predictor_from_file(file: bytes, native: Predictor, *, compiled: bool) -> TreePredictor:
    """Stored trees, compiled or evaluated by NumPy, after comparing them on generated rows with what the library answered in training.

    Raises NotCompilableError if they differ, or the trees cannot be compiled.
    """
    stored = read_trees(file)
    parts = stored.parts
    predictor = _compiled(parts, native) if compiled else TreePredictor(native, parts, PlainTrees.of(parts.ensemble))
    for matrix, digest in zip(generated_rows(parts), stored.digests, strict=True):
        with np.errstate(all="ignore"):
            scores = predictor.evaluated(matrix)
        require(scores is None or _digest(_bits(scores)) == digest, _differs(len(matrix)))
    return predictor


def is_few(rows: int, trees: int) -> bool:
    """Return whether NumPy evaluates so many rows, and those of the proof, sooner than a kernel is loaded."""
    return (rows + 2 * GENERATED_ROWS) * trees <= MOST_VISITS


def prove(native: Predictor, held_out: NDArray[np.float64], *, decides: bool = False) -> Proof:
    """Compare the compiled form of a fitted model with the native one, bit for bit; the decision function too if it `decides`.

    Compares on rows that the model was not fitted on [rows, columns], and on generated ones: missing values, unseen
    categories, infinities, values at thresholds.
    """
    if not isinstance(native, CompilablePredictor):
        return NOT_TREES
    try:
        predictor = compile_predictor(native)
    except NotCompilableError as error:
        return Proof(Compilation(kernel=None, trees=0, rows=0, reason=str(error)))
    trees = len(predictor.parts.ensemble.trees)
    spaced = held_out[:: max(1, -(-len(held_out) // MAX_HELD_OUT))]
    compared, digests = 0, list[str]()
    for matrix in (spaced, *generated_rows(predictor.parts)):
        with _quiet():
            outcome, compiled = _outcome(native.predict, matrix), _outcome(predictor.predict, matrix)
            same = not decides or _outcome(partial(decisions, native), matrix) == _outcome(predictor.decide, matrix)
        if outcome != compiled or not same:
            return Proof(Compilation(kernel=None, trees=trees, rows=compared, reason=_differs(len(matrix))))
        compared += len(matrix)
        digests.append(_digest(outcome))
    compilation = Compilation(kernel=predictor.flat.kernel_name, trees=trees, rows=compared, reason=None)
    return Proof(compilation, trees_file(predictor.parts, digests[1:]))


def _differs(rows: int) -> str:
    return f"the compiled form differs from the library's own result on some of {rows} rows"


def same_outcome(first: Predictor, second: Predictor, matrix: NDArray[np.float64]) -> bool:
    """Return whether two predictors return the same bits, or raise the same error."""
    with _quiet():
        return _outcome(first.predict, matrix) == _outcome(second.predict, matrix)


@contextmanager
def _quiet() -> Generator[None]:
    with one_thread(), np.errstate(all="ignore"):  # casts warn of what the library then refuses
        yield


def _outcome(predict: Callable[[NDArray[np.float64]], Any], matrix: NDArray[np.float64]) -> bytes | str:
    """The type, shape and bits of a prediction, or the message of an error."""
    try:
        return _bits(predict(matrix))
    except ValueError as error:
        return str(error)


def _bits(scores: NDArray[Any]) -> bytes:
    return f"{scores.dtype.str} {scores.shape} ".encode() + scores.tobytes()


def _digest(outcome: bytes | str) -> str:
    """A hash of an outcome; `refused` for an error."""
    return "refused" if isinstance(outcome, str) else hashlib.sha256(outcome).hexdigest()


def generated_rows(parts: Parts, seed: int = 0) -> Iterator[NDArray[np.float64]]:
    """Generate matrices, in Fortran order, of the values on which a tree could go wrong.

    First plain numbers: thresholds, their neighbours in 64 and in 32 bits, zeros of both signs, categories known and
    unseen. Then the same with missing values, with values too large for 32 bits, and with infinities.
    """
    random = np.random.default_rng(seed)
    direct = parts.columns == parts.ensemble.features  # the columns of the trees are those of the matrix
    pools = _pools(parts.ensemble) if direct else [_ORDINARY] * parts.columns
    plain = np.asfortranarray(np.column_stack([random.choice(pool, GENERATED_ROWS) for pool in pools]))
    yield plain
    for odd in ([np.nan], [1e39, -1e39], [np.inf, -np.inf]):
        few = plain[: GENERATED_ROWS // 4].copy(order="F")
        at = random.random(few.shape) < ODD_SHARE
        few[at] = random.choice(odd, int(at.sum()))
        yield few


def _pools(ensemble: Ensemble) -> list[NDArray[np.float64]]:
    """The values to try, by column."""
    tried: list[list[NDArray[np.float64]]] = [[_ORDINARY] for _ in range(ensemble.features)]
    for tree in ensemble.trees:
        inner = (tree.left >= 0) & (tree.left_set < 0) & np.isfinite(tree.threshold)
        for at in np.unique(tree.feature[inner]).tolist():
            tried[at].append(tree.threshold[inner & (tree.feature == at)])
    for at, known in ensemble.categories.items():
        tried[at] += [known, known + 0.5, -known - 1.0, known + len(known)]
    pools: list[NDArray[np.float64]] = []
    for values in tried:
        cuts = np.unique(np.concatenate(values))
        cuts = cuts[:: len(cuts) // MAX_THRESHOLDS + 1]
        single = cuts.astype(np.float32)
        beside = [np.nextafter(kind, kind.dtype.type(way)) for kind in (cuts, single) for way in (-np.inf, np.inf)]
        halfway = (single.astype(np.float64) + beside[3].astype(np.float64)) / 2
        pools.append(np.concatenate([_ORDINARY, cuts, single, halfway, *beside], dtype=np.float64))
    return pools


@dataclass(frozen=True)
class PlainTrees:
    """Trees evaluated by NumPy alone."""

    ensemble: Ensemble
    nodes: Tree  # the nodes of all trees, in one list
    roots: NDArray[np.int64]  # [trees]
    kernel_name: str = "NumPy"

    @classmethod
    def of(cls, ensemble: Ensemble) -> "PlainTrees":
        """Join the trees of an ensemble; raises MalformedError if its nodes form no trees."""
        require_sound(ensemble)
        return cls(ensemble, *joined(ensemble.trees))

    def add(self, matrix: NDArray[np.float64], sums: NDArray[np.float64]) -> bool:
        """Add all trees to the sums [rows, outputs] of a matrix [rows, features]; False if the library might refuse a row."""
        with np.errstate(over="ignore"):  # a value too large for 32 bits is infinite, as in the library
            if (values := coded(self.ensemble, matrix)) is None:
                return False
            for tree, leaves in zip(self.ensemble.trees, self._leaves(values), strict=True):
                part = sums[:, tree.output : tree.output + tree.value.shape[1]]
                part += self.nodes.value[leaves]
                if self.ensemble.single_sums:
                    part[:] = part.astype(np.float32)
        return True

    def _leaves(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """The leaf that each row reaches [trees, rows], as a node among those of all trees."""
        nodes = self.nodes
        at = np.repeat(self.roots, len(values))
        waiting = np.flatnonzero(nodes.left[at] >= 0)
        while len(waiting):
            node = at[waiting]
            value = values[waiting % len(values), nodes.feature[node]]
            goes_left = np.where(np.isnan(value), nodes.missing_left[node], value <= nodes.threshold[node])
            if len(nodes.left_sets):
                by_set = nodes.left_set[node] >= 0
                goes_left[by_set] = nodes.left_sets[nodes.left_set[node[by_set]], value[by_set].astype(np.int64)]
            at[waiting] = node = np.where(goes_left, nodes.left[node], nodes.right[node])
            waiting = waiting[nodes.left[node] >= 0]
        return at.reshape(len(self.roots), len(values))


def joined(trees: Sequence[Tree]) -> tuple[Tree, NDArray[np.int64]]:
    """The nodes of all trees in one list, and the place of each root."""
    roots, sets = _starts(len(tree.left) for tree in trees), _starts(len(tree.left_sets) for tree in trees)

    def together(name: str, starts: NDArray[np.int64] | None = None) -> NDArray[Any]:
        parts = [getattr(tree, name) for tree in trees]
        if starts is not None:  # a number below zero stands for none
            parts = [np.where(part >= 0, part + start, LEAF) for part, start in zip(parts, starts, strict=True)]
        return np.concatenate(parts)

    nodes = Tree(
        feature=together("feature"),
        threshold=together("threshold"),
        left=together("left", roots),
        right=together("right", roots),
        missing_left=together("missing_left"),
        value=together("value"),
        left_set=together("left_set", sets),
        left_sets=together("left_sets"),
        cover=together("cover"),
    )
    return nodes, roots


def coded(ensemble: Ensemble, matrix: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The values as the trees compare them, categories as their codes; None if the library might refuse a row."""
    values = matrix.astype(np.float32).astype(np.float64) if ensemble.single else matrix.copy()
    infinite = np.isinf(values[:, ensemble.infinity_refused]).any()
    if infinite or (ensemble.nan_refused and np.isnan(values).any()):
        return None
    for at, known in ensemble.categories.items():
        codes = np.minimum(np.searchsorted(known, values[:, at]), len(known) - 1)
        unknown = known[codes] != values[:, at]
        if ensemble.unknown_refused and (unknown & ~np.isnan(values[:, at])).any():
            return None
        values[:, at] = np.where(unknown, MOST_CATEGORIES, codes)
    return values


def _starts(lengths: Iterable[int]) -> NDArray[np.int64]:
    """The places at which the members of a joined list begin, given their lengths."""
    return np.cumsum([0, *lengths])[:-1]
