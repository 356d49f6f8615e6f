"""Numbers, dates and names in the wording of the report: for readers who know neither the pipeline nor statistics."""

import math
import re
from collections.abc import Iterable, Sequence
from datetime import date
from itertools import takewhile

from batch_platform.declaration.errors import number

MOST_NAMED = 6  # partitions that a sentence names
MOST_DECIMALS = 6
PLAIN = {  # metrics as somebody would say them who has never heard of them
    "accuracy": "share of rows whose most probable class was the true one",
    "average_precision": "precision over all thresholds",
    "bias": "mean error, above 0 where predictions are too high",
    "brier": "squared error of the probabilities",
    "calibration_error": "distance of the probabilities from the observed shares",
    "decision_cost": "cost of the decisions for each row",
    "decision_cost_always": "cost of always acting",
    "decision_cost_in_hindsight": "lowest cost that any threshold would have had",
    "decision_cost_never": "cost of never acting",
    "error_p10": "error that a tenth of the rows stays below",
    "error_p50": "error that half of the rows stays below",
    "error_p90": "error that nine tenths of the rows stay below",
    "f1": "balance of hits and misses",
    "false_positive_rate": "share of the negatives that were chosen",
    "ks": "widest gap between positives and negatives",
    "lift_at_1": "hits in the top 1%, as a multiple of chance",
    "lift_at_5": "hits in the top 5%, as a multiple of chance",
    "lift_at_10": "hits in the top 10%, as a multiple of chance",
    "log_loss": "penalty for confident mistakes",
    "mae": "mean size of an error",
    "mape": "mean size of an error, relative to the truth",
    "outlier_share": "share of rows that stand out",
    "precision": "share of the chosen that were right",
    "r2": "share of the differences that is explained",
    "recall": "share of the positives that were chosen",
    "rmse": "typical size of an error, large ones counting more",
    "roc_auc": "quality of the ranking",
    "selection_rate": "share of rows that were chosen",
    "silhouette": "separation of the groups",
}
SHARES = {"accuracy", "false_positive_rate", "outlier_share", "precision", "recall", "selection_rate"}  # in percent
_FAMILIES = ("decision_", "error_", "lift_")
SELF_EXPLANATORY = {"bias", "mae", "mape", *SHARES, *(name for name in PLAIN if name.startswith(_FAMILIES))}
GUESSING = {"roc_auc": 0.5, "r2": 0.0}  # values that a model without features has
_REWORDED = {
    "the gate": "its acceptance test",
    "the champion": "the model in use",
    "champion": "the model in use",
    "than guessing": "than a simple guess",
}
_TERMS = {"roc_auc": "ROC AUC", "rmse": "RMSE", "mae": "MAE", "mape": "MAPE", "r2": "R²", "ks": "KS", "f1": "F1"}


def figure(value: float | None, low: float | None, high: float | None) -> str:
    """Format a number with the digits that its 95% interval supports."""
    return number(value, ".3g") if value is None or low is None or high is None else _rounded(value, (high - low) / 2)


def ends(low: float | None, high: float | None) -> str:
    """Format an interval with as many digits; a dash without one."""
    if low is None or high is None:
        return "-"
    return f"{_rounded(low, (high - low) / 2)} to {_rounded(high, (high - low) / 2)}"


def alike(values: Iterable[float]) -> str:
    """Return the format that gives numbers as many decimals as show three digits of the largest."""
    largest = max(map(abs, values), default=0)
    return f".{max(0, 2 - math.floor(math.log10(largest))) if largest else 0}f"


def _rounded(value: float, half: float) -> str:
    decimals = 3 if half <= 0 else min(max(0, math.ceil(-math.log10(half / 2))), MOST_DECIMALS)
    return f"{round(value, decimals) + 0.0:,.{decimals}f}"  # never -0


def words(name: str) -> str:
    """Write the name of a column as words."""
    return name.replace("_", " ")


def plain(metric: str) -> str:
    """Say a metric in plain words, with its term behind; one of the pipeline's own has its own name."""
    return f"{PLAIN[metric]} ({term(metric)})" if metric in PLAIN else words(metric)


def term(metric: str) -> str:
    """Return the common name of a metric."""
    return _TERMS.get(metric, words(metric))


def when(key: str, *, monthly: bool = False) -> str:
    """Write the key of a day as a date, and that of a month as its name; other keys stay as they are."""
    try:
        day = date.fromisoformat(key)
    except ValueError:
        return key
    if monthly:
        return f"{day:%B %Y}"
    return f"{day.day} {day:%B %Y}" if len(key) == len("2013-04-18") else key


def between(first: str, last: str, *, monthly: bool = False) -> str:
    """Name the time from one partition to another: "August 1974", "January to August 1974", "1 to 30 April 2013"."""
    start, end = (when(key, monthly=monthly).split() for key in (first, last))
    shared = len([*takewhile(lambda pair: pair[0] == pair[1], zip(reversed(start), reversed(end), strict=False))])
    return " ".join(end if start == end else [*start[: len(start) - shared], "to", *end])


def dates(keys: Sequence[str], *, monthly: bool = False) -> str:
    """Name some partitions, or times from one to another ("KEY to KEY"), the newest if there are many."""
    ends = ((key.partition(" to ")[0], key.rpartition(" to ")[2]) for key in keys[-MOST_NAMED:])
    shown = [between(first, last, monthly=monthly) for first, last in ends]
    more = f" and {len(keys) - len(shown):,} more" if len(keys) > len(shown) else ""
    return f"{', '.join(shown[:-1])} and {shown[-1]}" if len(shown) > 1 and not more else f"{', '.join(shown)}{more}"


def percent(share: float) -> str:
    """Write a share in percent, one near none or all with a decimal."""
    return f"{share:.0%}" if 0.2 <= share <= 0.9 else f"{share:.1%}"  # noqa: PLR2004 - where a point is a small part


def reworded(reason: str, unit: str) -> str:
    """Write a recorded reason in the words of the report."""
    for recorded, shown in _REWORDED.items():
        reason = reason.replace(recorded, shown)
    return re.sub(rf"\b({'|'.join(_TERMS)})\b", lambda match: _TERMS[match[1]], of_length(reason, unit))


def of_length(text: str, unit: str) -> str:
    """Call a partition by its length, such as day; names that hold the word, such as partition_key, stay as they are."""
    return re.sub(r"\bpartition(s?)\b", rf"{unit}\1", text)


def capital(text: str) -> str:
    """Begin with a capital letter, and leave the rest as it is."""
    return text[:1].upper() + text[1:]
