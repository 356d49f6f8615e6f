"""Judge the columns of a table: the one that is worth predicting, and those that can be features.

Evidence comes from names, positions, types, values and nulls. Nothing is written here.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl

from batch_platform.declaration.errors import WrongUseError, shortened
from batch_platform.kernels.native_threads import one_thread
from batch_platform.models.contract import MAX_CATEGORIES, infer_contract
from batch_platform.models.estimator_fit import share_told
from batch_platform.monitoring.leakage import MAX_ROWS, SuspectedLeak, suspected_leaks
from batch_platform.monitoring.metrics import as_truth
from batch_platform.proposal.instants import words
from batch_platform.proposal.survey import LEAST_ROWS, NEARLY, Holds, Survey, TableColumn

MOST_CLASSES = 20  # most distinct values of an integer label that holds classes; more are a quantity
ROWS_PER_CLASS = 5  # fewest rows per value of such a label; fewer are a quantity too
# Texts with fewer rows each are names. A model keeps the most frequent of many, which are in few rows; few texts of one row tell nothing.
ROWS_PER_NAME, ROWS_PER_VALUE = 5, 2
ENOUGH, CLEARLY = 4, 1  # points for a label that nobody named, and how many more than any other column has
SURELY = 3  # points by which name and place decide, whatever can be learned
MOST_TRIED, TRIED_ROWS = 15, 1_000  # columns that are learned on a sample, to see which can be
NOTHING, COPY = (
    0.02,
    0.975,
)  # share that others tell of a column that cannot be learned, and of one that is derived from them
_NO_FEATURE: dict[Holds, str] = {
    "nothing": "has no values",
    "row number": "is the number that pandas gave the row",
    "time": "is a time, from which a number could be computed as a feature, such as an age in days",
}
_LABEL_NAME = re.compile(
    "label|target|y|outcome|class|churn|fraud|default|late|attrition|resp(onse)?|responder|fail(ure)?|diagnosis|price|sales|demand"
    "|salary|wages?|charges|cost|score|rating|status|event|case|death|dead|result|decision|choice|vote|purchase|count|yield|close"
    "|earnings|revenue|profit|loss|value|rate|answer|math(s|ematics)?|reading|gpa|exam|marks?|(l|ln|log)(wage|price|sales|salary)|(?!.*(eed|red|bed|med|rried|orced|rated|owed)$)[a-z]{3,}ed"
)
# Names of who, where and when, which are known rather than predicted.
_GIVEN_NAME = re.compile(
    "age|sex|gender|race|ethn(ic|icity)?|nation(ality)?|region|state|country|county|continent|city|town|district|zip|postcode|address"
    "|lat(itude)?|long?(itude)?|year|yr|month|mon|day|week|hour|season|quarter|weekday|date|time|edu(c|cation)?|school(ing)?"
    "|occupation|married|marital|religi(on|ous)|urban|rural|black|white|hispanic|asian|fe?male|group|treat(ment|ed)?|trt|arms?"
    "|cent(er|re)|hospital|dose|subject|visit|stratum|brand|model|colou?r|category|language|north|south|east|west"
)
_NUMBERED = re.compile(r"(?<=[a-z]{3})\d+$")  # the number behind a noun tells the year, class or measurement
_UNIT = re.compile(r"\d+|eur|usd|gbp|dollars?|euros?|percent|pct|per|in|of")  # behind the noun of a name
ID_NAMES = ("id", "key", "uuid", "guid")  # last words of names that say that a column identifies its row
KEY_NAMES = (*ID_NAMES, "number", "nr", "no", "code")
_COUNTED = ("row", "line", "record", "obs", "observation", "seq", "sequence")  # a number of these only counts the rows
PARTS_OF_TIME = frozenset({"year", "quarter", "month", "week", "weekday", "day", "hour", "minute", "second"})
# Also Kunden-Nr, distid and custid, but not words such as paid, acid, valid and steroid.
_ID_NAME = re.compile(
    "(.* )?((?!(un|pre|re)?paid$|(a|b|m|k|d|ac|gr|co|hum|lip|val|inval|sol|flu|liqu|rap|hybr)id$|[a-z]+(oid|vid)$)[a-z]{0,6}id"
    "|uuid|guid|mrn|ssn|iban|isbn|vin|imei|sku|ean|row ?names?|subject|patient|respondent|seqno?|id(case|num|no)"
    "|(case|customer|family|household|member|obs|order|patient|person|record|row|student|subject|unit|user)(id|no|nr|num)"
    "|[^ ]+ nr|[^ ]*nummer"
    "|(first|last|full|given|sur|user|client|customer|employee|member|passenger|patient|person|player|student) ?name|e ?mail"
    ")( (str|no|nr))?|name"
)
ROWS_PER_ID = 20  # a column with such a name and more rows for each value may group them, as the number of a shop does
_ID_NAMES = frozenset({*KEY_NAMES, "row"})
_INDEX_NAME = re.compile("(row ?)?index")  # the index of something else, such as that of prices, is a quantity


@dataclass(frozen=True)
class Evidence:
    """The case for a column as the label."""

    column: TableColumn
    points: float
    reasons: tuple[str, ...]


def label_evidence(survey: Survey, taken: Collection[str] = ()) -> list[Evidence]:
    """The columns that could be the label, the likeliest first, without some that are `taken` for other roles.

    Name and place decide, and where they do not clearly, also how much of a column the others tell.
    """
    able = [column for column in survey.columns if column.name not in taken and _can_be_label(survey, column)]
    weighed = sorted(_weighed(survey, able), key=lambda evidence: -evidence.points)
    if len(weighed) < 2 or weighed[0].points - weighed[1].points >= SURELY:  # noqa: PLR2004 - nothing to choose from
        return weighed
    told = _told(survey, [evidence.column for evidence in weighed[:MOST_TRIED]])
    learned = [
        replace(evidence, points=evidence.points + _learning_points(told.get(evidence.column.name, NOTHING)))
        for evidence in weighed
    ]
    return sorted(learned, key=lambda evidence: -evidence.points)


def _learning_points(share: float) -> float:
    """The points of a column of which others tell a share: it can be learned, cannot, or is derived from them."""
    return -1 if share < NOTHING else -0.5 if share > COPY else (1 + share) / 2


def _told(survey: Survey, labels: Sequence[TableColumn]) -> dict[str, float]:
    """The share of each column that the others tell, on a sample."""
    able = [column for column in survey.columns if column.holds in ("integer", "number", "boolean", "text")]
    names = [
        column.name
        for column in able
        if not column.unique and not (column.is_text and column.distinct > MAX_CATEGORIES)
    ]
    rows, told = survey.sample([column for column in able if column in labels or column.name in names], TRIED_ROWS), {}
    contract = infer_contract(rows[names], {})
    rows = contract.split(rows).kept
    matrix = contract.encode(rows)
    for label in labels:
        known, classes = rows[label.name].is_not_null().to_numpy(), target_of(survey, label) == "classes"
        others = [at for at, name in enumerate(names) if name != label.name]
        if known.sum() < LEAST_ROWS or not others or (classes and label.distinct > MAX_CATEGORIES):
            continue
        values = rows[label.name].cast(pl.String).rank("dense") if classes else rows[label.name].cast(pl.Float64)
        truth = values.to_numpy()[known]
        told[label.name] = share_told(matrix[known][:, others], truth, classes=classes)
    return told


def _can_be_label(survey: Survey, column: TableColumn) -> bool:
    """Return whether values repeat or are numbers; a constant, a time, an identifier and a free text cannot be predicted."""
    if column.holds not in ("boolean", "integer", "number", "text") or column.distinct <= 1:
        return False
    if column.is_likely_time or _is_an_identifier(survey, column):
        return False
    if column.holds == "integer":
        return not column.counts_rows
    return not column.is_text or column.distinct <= _most_classes(survey, column)


def _most_classes(survey: Survey, label: TableColumn) -> float:
    """The largest number of distinct texts in a label; more of them name rows, not classes."""
    return (survey.rows - label.nulls) / ROWS_PER_VALUE


def _weighed(survey: Survey, able: Sequence[TableColumn]) -> Iterator[Evidence]:
    """The case for each column by its name, its place and its values."""
    with_nulls, nulls_last = [column for column in survey.columns if column.nulls], survey.with_nulls_last(able)
    two_values = [column for column in able if column.distinct == 2]  # noqa: PLR2004 - yes and no
    last = max(column.position for column in survey.columns)
    for place, column in enumerate(able):
        own = words(column.name)
        is_given, is_named = any(map(_GIVEN_NAME.fullmatch, own)), _is_called_like_a_label(own)
        weights = {
            "its name": 3 * (is_named and (len(own) == 1 or not is_given)),
            "it is the last column": {0: 2, 1: 0.5}.get(last - column.position, 0),
            "it is the first column": {0: 2, 1: 0.5}.get(place, 0),
            "it has two values": two_values[:2] == two_values and column in two_values,  # few columns have two
            "it is the only column with nulls": with_nulls == [column],
            "its nulls are the last rows": column.name in nulls_last,
        }
        reasons = tuple(reason for reason, weight in weights.items() if weight >= 1)
        yield Evidence(column, sum(weights.values()) - 2 * is_given, reasons)


def _is_called_like_a_label(own: Sequence[str]) -> bool:
    """Return whether the last word of a name, which says what the column is, or a question says that it is an outcome."""
    nouns = [word for word in own if not _UNIT.fullmatch(word)]
    noun = _NUMBERED.sub("", nouns[-1]) if nouns else ""
    return bool(nouns) and (_LABEL_NAME.fullmatch(noun) is not None or nouns[0] in ("is", "has", "did"))


def target_of(survey: Survey, label: TableColumn) -> str:
    """The content of the label, "classes" or "numbers"; raises WrongUseError if it holds neither."""
    if label.holds in ("boolean", "text"):
        return "classes"
    if label.holds == "integer":
        values = survey.values(label.name)
        return "classes" if values <= MOST_CLASSES and values * ROWS_PER_CLASS <= survey.rows else "numbers"
    if label.holds == "number":
        return "classes" if survey.values(label.name) == 2 else "numbers"  # noqa: PLR2004 - two numbers are yes and no
    msg = f"{label.name!r} of {survey.origin.path} has type {label.dtype}, which cannot be predicted."
    raise WrongUseError(msg, hint="name a column of numbers, truth values or class names with --label.")


def require_repeating_texts(survey: Survey, label: TableColumn) -> None:
    """Refuse a label of texts that hardly repeat."""
    values = survey.values(label.name) if label.is_text else 0
    if values > _most_classes(survey, label):
        msg = (
            f"{label.name!r} of {survey.origin.path} holds {values:,} distinct texts in {survey.rows - label.nulls:,} rows; "
            "texts can be predicted only if each is in two rows on average."
        )
        raise WrongUseError(msg, hint="name another --label: values that hardly repeat are names of rows.")


def feature_reasons(
    survey: Survey, label: TableColumn | None, taken: Sequence[TableColumn | None], series: TableColumn | None
) -> Mapping[TableColumn, str | None]:
    """Every column that has no other role, with why it cannot be a feature; None for those that can.

    Of a `series`, the time of each row is unique: a counter of its rows tells no more.
    """
    reasons = {column: _no_feature(survey, column, series) for column in survey.columns if column not in taken}
    if label is not None:
        able = [column for column, reason in reasons.items() if reason is None]
        known_too_late = _known_with_the_label(survey, label, able)
        reasons |= {column: f"{tie}, so it may be known only with the label" for column, tie in known_too_late.items()}
    return reasons


def _no_feature(survey: Survey, column: TableColumn, series: TableColumn | None) -> str | None:
    """The reason for which a column cannot be a feature as it is; None if it can."""
    rows = survey.rows
    if column.holds in _NO_FEATURE:
        return _NO_FEATURE[column.holds]
    if column.holds == "other":
        return f"has type {column.dtype}, from which a number or a text could be computed as a feature"
    if column.distinct <= 1 and not column.nulls:
        return "has the same value in every row"
    if column.is_text and column.distinct > min(max(MAX_CATEGORIES, rows / ROWS_PER_NAME), rows / ROWS_PER_VALUE):
        return f"is a text with about {min(column.distinct, rows):,} distinct values in {rows:,} rows: features.sql could group them"
    return _names_rows(survey, column, series)


def _names_rows(survey: Survey, column: TableColumn, series: TableColumn | None) -> str | None:
    """The way in which a column names rows: it counts them, differs in each, or is called like an identifier; None if it does not."""
    rows = survey.rows
    counts = column.counts_rows and rows >= LEAST_ROWS and not is_part_of_time(column) and column != series
    if counts and series is not None:
        return f"counts the rows, which {shortened(series.name)} already identifies"
    if column.unique and column.is_text:
        return "is a text with another value in every row"
    is_id = _ID_NAME.fullmatch(" ".join(words(column.name))) is not None
    many = max(MOST_CLASSES, rows / ROWS_PER_ID) if is_id else rows * NEARLY
    if column.distinct <= many or not _is_an_identifier(survey, column):
        return "counts the rows" if counts else None
    values = survey.values(column.name)
    if values == rows - column.nulls:
        return f"is an identifier, with another value in every row{' that has one' if column.nulls else ''}"
    return f"is called like an identifier, and has {values:,} values in {rows:,} rows: some occur more than once"


def _known_with_the_label(survey: Survey, label: TableColumn, able: Sequence[TableColumn]) -> dict[TableColumn, str]:
    """The columns that tell the label as if they were known only with it, and how: first the certain ones, then suspected leaks."""
    name = shortened(label.name)
    ties = dict.fromkeys(survey.null_with(label, able), f"is null exactly where {name} is null")
    plain = [column for column in able if column not in ties]
    if not plain or survey.rows < LEAST_ROWS:
        return ties
    rows = survey.sample([*plain, label], MAX_ROWS, label)
    ties |= {column: f"tells the value of {name}" for column in plain if _tells(rows, column, label)}
    suspected = {column.name: column for column in plain if column not in ties}
    if not suspected:
        return ties
    contract, classes = infer_contract(rows[[*suspected]], {}), target_of(survey, label) == "classes"
    kept = contract.split(rows[[*suspected, label.name]]).kept
    categorical = [column.type == "category" for column in contract.columns]
    matrix, truth = contract.encode(kept), as_truth(kept[label.name])
    with one_thread():
        leaks = suspected_leaks(matrix, contract.names, categorical, truth, classes=classes)
    return ties | {suspected[column]: _of_one(leak, column, name) for leak in leaks for column in leak.columns}


def _tells(rows: pl.DataFrame, column: TableColumn, label: TableColumn) -> bool:
    """Return whether the numbers of a column equal those of the label, or each value of one has a single value of the other."""
    known = rows[[column.name, label.name]].drop_nulls()  # names are no patterns there
    values, labels = known.get_columns()
    is_equal = column.is_number and label.is_number and (values.cast(pl.Float64) == labels.cast(pl.Float64)).all()
    if is_equal and known.height:
        return True
    return 1 < values.n_unique() == labels.n_unique() == known.n_unique() < known.height / 2


def _of_one(leak: SuspectedLeak, column: str, label: str) -> str:
    """Say of one column of a leak what is suspicious; several add up to the label, differ by it, or hold the same numbers."""
    others = " and ".join(shortened(other) for other in leak.columns if other != column)
    several = {
        "add up to the label": f"adds up to {label} with {others}",
        "differ by the label": f"differs by {label} from {others}",
    }
    return several.get(leak.reason, leak.reason.replace("tell too much", f"tells with {others} too much"))


def last_word(name: str) -> str:
    """The last word of a name, in lower case."""
    return (words(name) or [""])[-1]


def names_things(column: TableColumn) -> bool:
    """Return whether the name of a column says what it identifies: an id, or the number of something, such as `invoice_no`."""
    parts = words(column.name) or [""]
    return parts[-1] in ID_NAMES or (len(parts) > 1 and parts[-1] in KEY_NAMES and parts[0] not in _COUNTED)


def is_part_of_time(column: TableColumn) -> bool:
    """Return whether a column is called like a part of a time, such as the year of yearly rows."""
    return last_word(column.name) in PARTS_OF_TIME


def is_called_like_an_identifier(column: TableColumn) -> bool:
    """Return whether the name of a column says that it names things, as an id or a number does."""
    name = " ".join(words(column.name))
    return last_word(column.name) in _ID_NAMES or any(each.fullmatch(name) for each in (_ID_NAME, _INDEX_NAME))


def _is_an_identifier(survey: Survey, column: TableColumn) -> bool:
    """Return whether a column is called like an identifier and holds no numbers with decimals."""
    return is_called_like_an_identifier(column) and not (column.holds == "number" and survey.has_decimals(column.name))
