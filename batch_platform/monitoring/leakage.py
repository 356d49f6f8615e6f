"""Leakage: features that may contain the outcome, because they tell the label too well.

A suspicion, not a proof: a person who knows when the values of a column become known has to decide. A column is judged by
models of it alone, fitted and measured on different rows, beside models of all other columns: what tells a leak from a strong
feature is that no other column comes near, and that earlier labels do not explain it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.monitoring.metrics import weighted_area

NEARLY = 0.999
EXACT, COPIED, COPIED_AT_LEAST = 0.995, 0.925, 0.85  # shares of a class that a copy gets right: COPIED on average
PURE, TELLS = 0.99, 0.3  # a column tells a class by values that nearly only this class has, in TELLS of its rows
COMPLETE, TIMES = 0.965, 5  # area under the ROC curve with a leak; without it the distance from 1 is TIMES as large
COMPLETE_NUMBER, TIMES_NUMBER, SLACK = 0.985, 10, 0.01  # the same of R2 of ranks; SLACK of an area of few rows
APPROACHED = 0.95  # area of other columns that come near
RARE, MIN_ROWS_OF_A_RARE = 0.1, 20  # rare events are often extremes: a number must tell a class of this share exactly
EARLIER = 0.9  # a column that tells the label before with this share of its errors is no leak
CHANCE = 1e-6  # probability that the means of honest values are as close to the label
TWINS, MOSTLY, MINUTE = 0.5, 0.5, 1e-3  # shares: equal rows of two columns, nulls, part of a sum
FEWEST_VALUES = 10  # fewer values of a column tell nothing
MAX_ROWS, SCREENED_ROWS = 10_000, 2_000  # larger data are thinned to evenly spaced rows
MIN_ROWS = 20  # fewer may agree by chance
MIN_ROWS_OF_A_CLASS = 5
MIN_ROWS_OF_A_MODEL = 50  # a good model is perfect on a few rows
FOLDS, FEW_FOLDS = 5, 3  # models of a column alone, models of many columns
JUDGED, BESIDE, DROPPED = 6, 20, 2  # columns judged alone, given to a model of many, and left out of it in turn
MAX_CLASSES = 8  # the most frequent ones are judged
MAX_KINDS = 5  # different numbers that can mark rows; texts may have any number
IS_MEAN = "is the mean of the label over a group, the row itself included"
DECIDES = "alone nearly decides the label"
Values = NDArray[np.float64]


@dataclass(frozen=True)
class SuspectedLeak:
    """Features that may contain the outcome."""

    columns: tuple[str, ...]  # none if only the metrics of the whole model are suspicious
    reason: str  # follows the names of the columns in a sentence
    allowed: bool = False  # whether `model.allow_suspected_leaks` names the columns

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "SuspectedLeak":
        """Read what was recorded as plain values."""
        return cls(tuple(values["columns"]), values["reason"], allowed=values["allowed"])

    def __str__(self) -> str:
        """Say in one clause what is suspicious."""
        return f"{' and '.join(self.columns) or 'the model'} {self.reason}"


def suspected_leaks(  # noqa: PLR0913 - a table and its order
    matrix: Values,
    names: Sequence[str],
    categorical: Sequence[bool],
    truth: NDArray[Any],
    *,
    classes: bool,
    blocks: NDArray[np.int64] | None = None,
    entities: Iterable[NDArray[Any]] = (),
) -> list[SuspectedLeak]:
    """The columns that tell the label too well, each once and with its strongest reason.

    `matrix` holds encoded rows [n, columns] in order of time with NaN for missing values, `categorical` says for each column
    whether its numbers are positions of categories, and `classes` whether the labels in `truth` [n] are classes rather than
    numbers. Rows of one of the `blocks` [n], such as a group or a partition, are never on both sides of a fold; `entities`
    [n] name those whose labels follow each other.
    """
    step = max(1, -(-len(truth) // MAX_ROWS))
    columns, block = matrix[::step], np.zeros(len(truth), dtype=np.int64) if blocks is None else blocks
    if len(columns) < MIN_ROWS:
        return []
    suspects, numeric = dict[tuple[int, ...], str](), np.flatnonzero(~np.asarray(categorical))
    if truth.dtype.kind in "biuf":
        suspects |= _adding_up(columns, numeric, truth[::step].astype(np.float64))
    kinds, counts = np.unique(truth, return_counts=True)
    often = kinds[np.argsort(-counts, kind="stable")[:MAX_CLASSES]]
    for target in [truth == kind for kind in often] if classes else [truth]:
        suspects |= {(int(at),): IS_MEAN for at in numeric if _is_mean(matrix[:, at], target.astype(np.float64))}
    named, block = {at for parts in suspects for at in parts}, np.unique(block[::step], return_inverse=True)[1]
    fold = block * FOLDS // (block.max() + 1)
    if block.max() + 1 < FOLDS:
        fold = np.random.default_rng(0).permutation(len(columns)) % FOLDS
    for target, before, of_many in _targets(truth, classes=classes, entities=[np.zeros(len(truth)), *entities]):
        thinned = target[::step], fold, [earlier[::step] for earlier in before]
        if not classes or thinned[0].sum() >= MIN_ROWS_OF_A_CLASS:
            of_target = _Question(columns, categorical, *thinned, of_many).suspects()
            suspects |= {
                parts: how for parts, how in of_target.items() if parts not in suspects and not named & {*parts}
            }
    return [SuspectedLeak(tuple(names[at] for at in parts), suspects[parts]) for parts in sorted(suspects)]


def null_with_the_label(nulls: Mapping[str, int], rows: int, filled: Sequence[str]) -> list[SuspectedLeak]:
    """The columns that are null in exactly the rows whose label is not known.

    `nulls` counts by column the nulls in the `rows` without a label; `filled` names the columns that have no null in any
    row with a label.
    """
    reason = f"is null exactly where the label is ({rows:,} rows)"
    exact = [name for name in filled if rows >= MIN_ROWS and nulls.get(name) == rows]
    return [SuspectedLeak((name,), reason) for name in exact]


def nearly_perfect(metrics: Mapping[str, float], rows: int) -> list[SuspectedLeak]:
    """The model itself, if a metric of its `rows` evaluation rows is too good; the fewest rows of a class count, if it has any."""
    perfect = [name for name in ("roc_auc", "r2") if metrics.get(name, 0.0) >= NEARLY]
    if not perfect or rows < MIN_ROWS_OF_A_MODEL:
        return []
    return [SuspectedLeak((), f"is nearly perfect ({perfect[0]} {metrics[perfect[0]]:.4f} on {rows:,} rows)")]


def on_both_sides(
    learned: pl.DataFrame, judged: pl.DataFrame, features: Sequence[str], label: str
) -> list[SuspectedLeak]:
    """The model itself, if it is judged on rows that it has learned from: with all features and the label of another row.

    Rows that agree by chance, because the features have few values, are told by labels that differ or by how often they recur.
    Where nearly all rows are of one class and labels seldom differ, evaluation rows must recur more often than training rows.
    """
    known = learned.group_by(features, maintain_order=True).agg(pl.col(label).first().alias("__label"))
    again = judged.join(known, on=features, nulls_equal=True)
    many = again.height >= max(MIN_ROWS, judged.height / 20) and known.height >= learned.height / 2
    if not many or again[label].n_unique() == 1:
        return []
    unlike = (again[label] != again["__label"]).sum()
    by_chance = _unlike_by_chance(again[label], again["__label"])
    recurring = learned.select(pl.struct(features).is_duplicated().mean()).item()
    is_rarer = again.height / judged.height < recurring + 1 / 20
    if unlike > (1 - PURE) * again.height or (by_chance < MIN_ROWS and is_rarer) or unlike > by_chance / 10:
        return []
    rows = f"{again.height:,} of {judged.height:,} evaluation rows have the features and the label of a training row"
    return [SuspectedLeak((), f"is judged on rows that it has learned from: {rows}")]


def _unlike_by_chance(own: pl.Series, other: pl.Series) -> float:
    """The number of values that differ from the value beside them, on average over all orders of the other values."""
    counts = [values.alias("value").value_counts(name=name) for values, name in ((own, "own"), (other, "other"))]
    alike = (
        counts[0].join(counts[1], on="value", nulls_equal=True).select(pl.col("own").cast(pl.Float64) * pl.col("other"))
    )
    return len(own) - alike.sum().item() / max(len(own), 1)


def of_known_entities(
    learned: pl.DataFrame, judged: pl.DataFrame, features: Sequence[str], label: str
) -> list[SuspectedLeak]:
    """The model itself, if rows held out at random are of entities that it has learned from, such as visits of one patient.

    An entity is found by a feature of which each value has one label, while that of the next value is another as often as chance.
    """
    for name in features:
        known = learned.group_by(name, maintain_order=True).agg(pl.col(label).first().alias("__label"))
        known = known.drop_nulls().sort(name)
        again = judged.join(known, on=name)
        if known.height < MIN_ROWS or known.height > learned.height / 2 or again.height < judged.height / 2:
            continue
        unlike, next_to_it = (
            (own != other).sum() / len(own)
            for own, other in ((again[label], again["__label"]), (known["__label"], known["__label"].shift()))
        )
        by_chance = _unlike_by_chance(again[label], again["__label"]) / again.height
        is_chance = by_chance * again.height < MIN_ROWS or next_to_it < by_chance / 2
        if is_chance or unlike > min(1 - PURE, by_chance / 10):
            continue
        rows = (
            f"{again.height:,} of {judged.height:,} evaluation rows have a value of {name} that training rows have too"
        )
        reason = f"is judged on entities that it has learned from: {rows}, with the same label"
        return [SuspectedLeak((), f"{reason}. A column that names them belongs in features.key and model.train.group")]
    return []


@dataclass(frozen=True)
class _Question:
    """A class to be told from all others, or the ranks of a number, and the columns that may tell it."""

    columns: Values  # [n, columns]
    texts: Sequence[bool]
    target: NDArray[Any]  # [n], truth values or numbers
    fold: NDArray[np.int64]
    before: list[Values]  # the targets of earlier rows of the same entity; NaN where there is none
    of_many: bool  # one of more than two classes

    def suspects(self) -> dict[tuple[int, ...], str]:
        """The columns that are suspected, by position, each with the reason; columns that hold the same numbers are one."""
        ranked = self._screened()
        alone = {at: self._strength(_tree, [at], self._known(at)) for at in ranked[:JUDGED]}
        marks = {at: how for at in alone if self._is_class and (how := self._marks(at))}
        beside = [at for at in ranked[:BESIDE] if at not in marks]
        reasons: dict[tuple[int, ...], str] = {(at,): self._reason((at,), beside, alone, marks[at]) for at in marks}
        beside = [at for at in ranked[:BESIDE] if not reasons.get((at,))]
        for columns in self._needed(alone, beside):
            left = [at for at in beside if at not in columns]
            reasons[columns] = self._reason(columns, left, alone)
            beside = left if reasons[columns] else beside
        return {columns: reason for columns, reason in reasons.items() if reason}

    def _reason(
        self, columns: tuple[int, ...], left: Sequence[int], alone: Mapping[int, "_Strength"], marks: str = ""
    ) -> str:
        """The reason to suspect columns beside those that are left; empty if there is none."""
        rows, is_single = self._known(columns[0]), len(columns) == 1
        rest, every = self._strength(_trees, left, rows).area, self._strength(_trees, [*left, *columns], rows).area
        every = max(every, *(alone[at].area for at in columns if at in alone), 0.0)
        is_near = self._is_class and rest >= APPROACHED and (self.of_many or marks != DECIDES)
        if is_near or not (marks or self._falls(every, rest)) or self._is_earlier(columns[0]):
            return ""
        how = marks or f"tell{'s' * is_single} too much of the label"
        if every - rest < SLACK:
            return how
        falls = f"the {'AUC' if self._is_class else 'R2 of ranks'} falls from {every:.2f} to {rest:.2f}"
        return f"{how}: without {'it' if is_single else 'them'} {falls}"

    @property
    def _is_class(self) -> bool:
        return self.target.dtype == np.bool_

    @property
    def _exactly(self) -> bool:
        """Return whether a number must tell the class without an error: a rare class, or one of many, is often one of extremes."""
        return self._is_class and (self.of_many or min(self.target.mean(), 1 - self.target.mean()) < RARE)

    @property
    def _complete(self) -> float:
        return COMPLETE if self._is_class else COMPLETE_NUMBER

    def _known(self, at: int) -> NDArray[np.bool_]:
        """The rows by which a column is judged: those that have a value, unless most have none."""
        known = ~np.isnan(self.columns[:, at])
        return known if known.mean() > MOSTLY else np.ones(len(known), dtype=np.bool_)

    def _strength(self, model: Callable[[bool], Any], columns: Sequence[int], rows: NDArray[np.bool_]) -> "_Strength":
        fold = self.fold if model is _tree else self.fold % FEW_FOLDS
        return _strength_of(model, self.columns[rows][:, list(columns)], self.target[rows], fold[rows])

    def _screened(self) -> list[int]:
        """The columns that vary, those that tell most of the target first, as far as trees tell of rows that they have seen."""
        some = slice(None, None, max(1, len(self.fold) // SCREENED_ROWS))
        part, target, seen = self.columns[some], self.target[some], np.zeros(len(self.fold[some]), dtype=np.int64)
        filled = np.isfinite(self.columns).sum(axis=0) >= FEWEST_VALUES
        varied = [at for at, values in enumerate(part.T) if filled[at] and len(np.unique(values)) > 1]
        return sorted(varied, key=lambda at: -_strength_of(_tree, part[:, [at]], target, seen).area)

    def _needed(self, alone: Mapping[int, "_Strength"], beside: Sequence[int]) -> list[tuple[int, ...]]:
        """The columns without which the others may tell much less, those that hold the same numbers together."""
        if self._exactly:
            exact = [at for at in beside if at in alone and alone[at].area >= NEARLY and alone[at].balanced >= EXACT]
            return [(at,) for at in exact] if min(self.target.sum(), (~self.target).sum()) >= MIN_ROWS_OF_A_RARE else []
        known = [(at,) for at in beside if at in alone and alone[at].area >= self._complete]
        judged, columns = self.fold == 0, self.columns[:, beside]
        if not beside or len(np.unique(self.target[judged])) == 1 or len(np.unique(self.target[~judged])) == 1:
            return known
        model, held = _fitted(_trees(self._is_class), columns[~judged], self.target[~judged]), columns[judged]
        whole = _measured(_scores(model, held), self.target[judged]).area
        if whole < self._complete - SLACK:
            return known
        moved, left = np.random.default_rng(0).permutation(len(held)), dict[tuple[int, ...], float]()
        for place, values in enumerate(columns.T):
            twins = (columns == values[:, None]).mean(axis=0) >= (TWINS if len(np.unique(values)) > MAX_KINDS else 1)
            twins[place] = True  # nulls do not equal themselves
            mixed = np.where(twins, held[moved], held)
            left[tuple(sorted(np.array(beside)[twins].tolist()))] = _measured(
                _scores(model, mixed), self.target[judged]
            ).area
        needed = sorted((at for at in left if 1 - left[at] >= 2 * (1 - whole)), key=lambda at: left[at])[:DROPPED]
        return [*needed, *(single for single in known if not any({*single} & {*columns} for columns in needed))]

    def _falls(self, every: float, rest: float) -> bool:
        """Return whether all columns tell nearly all, and those that are left much less."""
        times = TIMES if self._is_class else TIMES_NUMBER
        return self._exactly or (every >= self._complete and 1 - rest >= times * (1 - every))

    def _is_earlier(self, at: int) -> bool:
        """Return whether a column rather tells the target before, such as the state of a machine that seldom changes."""
        column = self.columns[:, [at]]
        wrong = 1 - _strength_of(_tree, column, self.target, self.fold).balanced
        for before in self.before:
            known = ~np.isnan(before)
            if 2 * known.sum() >= len(known) and np.ptp(before[known]) > 0:
                earlier = before[known] > 0 if self._is_class else before[known]
                if 1 - _strength_of(_tree, column[known], earlier, self.fold[known]).balanced < EARLIER * wrong:
                    return True
        return False

    def _marks(self, at: int) -> str:
        """The way in which values of a column stand for the class; empty if they do not."""
        values = self.columns[:, at]
        kinds, kind = np.unique(values, return_inverse=True)  # NaN is a kind of its own
        if len(kinds) > MAX_KINDS and not self.texts[at]:
            kind = np.where(np.isnan(values), 0, np.where(kind == np.bincount(kind).argmax(), 1, 2))
        counts = np.stack([np.bincount(kind, weights=self.target == is_class) for is_class in (False, True)], axis=1)
        counts = counts[counts.sum(axis=1) > 0]
        sizes = counts.sum(axis=0)
        side = (counts / sizes).argmax(axis=1)
        right = [counts[side == at, at].sum() / sizes[at] for at in (0, 1)]
        if len(counts) <= MAX_KINDS and min(right) >= COPIED_AT_LEAST and sum(right) >= 2 * COPIED:
            share = f"{sum(right) / 2:.1%} of each class on average"
            return DECIDES if min(right) >= EXACT else f"repeats the label with few exceptions ({share})"
        often, rows = counts.sum(axis=1) >= MIN_ROWS_OF_A_CLASS, counts.sum(axis=1)
        rare = [at for at in (0, 1) if 2 * sizes[at] <= sizes.sum()]  # nearly all rows are of a frequent class anyway
        tells = max(counts[often & (counts[:, at] >= PURE * rows), at].sum() / sizes[at] for at in rare)
        return f"has values that only one class has ({tells:.0%} of its rows)" if tells >= TELLS else ""


@dataclass(frozen=True)
class _Strength:
    """Measures of how well a model tells a class or a number."""

    area: float  # under the ROC curve; of numbers R2
    balanced: float  # balanced accuracy; of numbers the share of the mean absolute deviation that is explained


def _strength_of(
    model: Callable[[bool], Any], columns: Values, target: NDArray[Any], fold: NDArray[np.int64]
) -> _Strength:
    """Measure a model on each fold after it was fitted on all others; on rows that it has seen if there is only one fold."""
    scores, is_class = np.full(len(target), target.mean()), target.dtype == np.bool_
    for at in np.unique(fold) if columns.shape[1] else ():
        judged = fold == at
        learned = judged if judged.all() else ~judged
        if not is_class or 0 < target[learned].mean() < 1:
            scores[judged] = _scores(_fitted(model(is_class), columns[learned], target[learned]), columns[judged])
    return _measured(scores, target)


def _measured(scores: Values, target: NDArray[Any]) -> _Strength:
    if len(np.unique(target)) == 1:
        return _Strength(0.5, 0.5)
    if target.dtype == np.bool_:
        area = float(weighted_area(target, scores)(np.ones(len(target))))
        right = (scores >= target.mean()) == target
        return _Strength(area, float(right[target].mean() + right[~target].mean()) / 2)
    wrong, spread = target - scores, target - target.mean()
    return _Strength(
        1 - float(wrong @ wrong / (spread @ spread)), 1 - float(np.abs(wrong).sum() / np.abs(spread).sum())
    )


def _fitted(model: Any, columns: Values, target: NDArray[Any]) -> Any:  # noqa: ANN401 - an estimator
    """Fit on rows in which a column may have no value at all, which histogram trees reject: as a constant it splits nothing."""
    return model.fit(np.where(np.isnan(columns).all(axis=0), 0.0, columns), target)


def _scores(model: Any, rows: Values) -> Values:  # noqa: ANN401 - an estimator
    return model.predict_proba(rows)[:, 1] if hasattr(model, "predict_proba") else model.predict(rows)


def _tree(classes: bool) -> Any:  # noqa: ANN401 - an estimator
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    tree, leaves = (DecisionTreeClassifier, 16) if classes else (DecisionTreeRegressor, 256)
    return tree(max_leaf_nodes=leaves, min_samples_leaf=5, random_state=0)


def _trees(classes: bool) -> Any:  # noqa: ANN401 - an estimator
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    trees = HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor
    return trees(max_iter=20, learning_rate=0.25, max_leaf_nodes=15, random_state=0)


def _targets(
    truth: NDArray[Any], *, classes: bool, entities: Sequence[NDArray[Any]]
) -> Iterator[tuple[NDArray[Any], list[Values], bool]]:
    """Each frequent class against the rest, or the ranks of numbers; with those of earlier rows, and whether there are many classes."""
    _, codes, counts = np.unique(truth, return_inverse=True, return_counts=True)
    often = np.argsort(-counts, kind="stable")[:MAX_CLASSES]
    shares, of_many = counts / len(truth), classes and len(counts) > 2  # noqa: PLR2004 - yes and no
    for kind in (often if of_many else often[1:]) if classes else [0]:
        target = codes == kind if classes else (np.cumsum(shares) - shares / 2)[codes]
        yield target, [_before(target, entity) for entity in entities], of_many


def _before(target: NDArray[Any], entity: NDArray[Any]) -> Values:
    """The target of the row before of the same entity; NaN where there is none."""
    order = np.argsort(entity, kind="stable")
    before = np.full(len(target), np.nan)
    before[order[1:]] = np.where(entity[order[1:]] == entity[order[:-1]], target[order[:-1]], np.nan)
    return before


def _is_mean(values: Values, target: Values) -> bool:
    """Return whether a column is the mean of the target over groups of rows, each with the row's own target in it.

    The residuals of honest values differ between values at least as much as among rows of one value (F test); those of such means
    hardly differ, since each group adds up to zero.
    """
    from scipy.special import fdtr

    known = ~np.isnan(values)
    values, beyond = values[known], (target - values)[known]
    if not len(values) or values.min() < target.min() or values.max() > target.max():
        return False
    kinds, kind, rows = np.unique(values, return_inverse=True, return_counts=True)
    freedom = len(kind) - len(kinds)
    if len(kinds) < FEWEST_VALUES or freedom < len(kind) / 2:
        return False
    between = float(np.bincount(kind, weights=beyond) ** 2 @ (1 / rows))
    within = float(beyond @ beyond) - between
    return within > 0 and fdtr(len(kinds), freedom, between / len(kinds) / within * freedom) < CHANCE


def _adding_up(matrix: Values, numeric: NDArray[np.int64], target: Values) -> dict[tuple[int, ...], str]:
    """The numeric columns of which a weighted sum is the target, and how; empty if there are none."""
    columns = matrix[:, numeric]
    varied = (np.isnan(columns).mean(axis=0) < MOSTLY) & (columns != columns[0]).any(axis=0)
    columns, numeric = columns[:, varied], numeric[varied]
    rows = np.flatnonzero(~np.isnan(columns).any(axis=1))
    rows = rows[:: max(1, len(rows) // max(SCREENED_ROWS, 3 * len(numeric)))]
    if len(rows) < 2 * len(numeric) + MIN_ROWS or np.ptp(target[rows]) == 0:
        return {}
    part, wanted = columns[rows] - columns[rows].mean(axis=0), target[rows] - target[rows].mean()
    size = np.linalg.norm(part, axis=0) * np.linalg.norm(wanted)
    alike = (size > 0) & (np.abs(wanted @ part) >= (1 - MINUTE**3) * size)
    if alike.any() and len(np.unique(wanted)) > 2:  # noqa: PLR2004 - a number, several copies of which would hide each other
        return {(int(at),): DECIDES for at in numeric[alike]}
    weights = np.linalg.lstsq(part, wanted)[0]
    shares = weights * part.std(axis=0) / wanted.std()
    used = np.abs(shares) > MINUTE
    if (wanted - part @ weights).std() > MINUTE / 10 * wanted.std() or used.sum() == 1:
        return {}
    return {tuple(numeric[used].tolist()): "add up to the label" if (shares[used] > 0).all() else "differ by the label"}
