"""Suspected leaks: what each rule suspects and what it leaves alone; `test_leaky_columns` measures them on kinds of columns."""

import numpy as np
import polars as pl
import pytest

from batch_platform.kernels.native_threads import one_thread
from batch_platform.monitoring.leakage import (
    MAX_ROWS,
    nearly_perfect,
    null_with_the_label,
    of_known_entities,
    on_both_sides,
    suspected_leaks,
)

pytestmark = pytest.mark.unit

N = 400


class Table:
    """Random columns of a test."""

    def __init__(self, seed: int = 1) -> None:
        self.random = np.random.default_rng(seed)
        self.noise = self.random.normal(size=N)
        self.binary = self.random.random(N) < 0.3
        self.three = self.random.integers(0, 3, N)
        self.amount = self.random.gamma(2.0, 40.0, N)

    def suspected(
        self, truth: np.ndarray, *, classes: bool = True, categorical: bool = False, **columns: np.ndarray
    ) -> list[str]:
        """What is suspected of some columns beside one of noise."""
        matrix = np.column_stack([self.noise, *(column.astype(np.float64) for column in columns.values())])
        kinds = [False, *[categorical] * len(columns)]
        with one_thread():
            leaks = suspected_leaks(matrix, ["noise", *columns], kinds, truth, classes=classes)
        return [str(leak) for leak in leaks]


@pytest.mark.parametrize("categorical", [True, False])
def test_an_honest_column_is_not_suspected(categorical):
    table = Table()
    nine_of_ten = np.where(table.random.random(N) < 0.1, 1 - table.binary, table.binary)
    many_kinds = table.random.integers(0, 200, N)
    for column in (np.arange(N), np.zeros(N), np.full(N, np.nan), nine_of_ten, many_kinds):
        assert table.suspected(table.binary, categorical=categorical, column=column) == []
        assert table.suspected(table.amount, classes=False, categorical=categorical, column=column) == []


@pytest.mark.parametrize("seed", range(3))
def test_a_strong_column_is_suspected_if_it_nearly_decides_the_label_and_no_other_comes_near(seed):
    table = Table(seed)
    normal = table.random.normal
    hidden = table.binary * 4.0 + normal(size=N)
    (leak,) = table.suspected(table.binary, score=hidden)
    assert leak.startswith("score "), "an AUC of about 0.998"
    assert table.suspected(table.binary, score=hidden, other=hidden + 0.5 * normal(size=N)) == []
    assert table.suspected(table.binary, score=table.binary * 1.8 + normal(size=N)) == [], "an AUC of about 0.9"
    near = table.amount + normal(size=N) * 5
    assert table.suspected(table.amount, classes=False, near=near, half=table.amount / 2 + 3 * normal(size=N)) == []


def test_two_columns_that_add_up_to_the_label_or_differ_by_it_are_suspected_together():
    table = Table()
    amount, part = table.amount, table.random.gamma(2.0, 20.0, N).round(2)
    gaps = np.where(table.random.random(N) < 0.1, np.nan, part)
    total = part + amount
    assert table.suspected(total, classes=False, part=part, rest=amount) == ["part and rest add up to the label"]
    assert table.suspected(amount, classes=False, part=gaps, total=total) == ["part and total differ by the label"]
    mine, yours = table.binary & (table.noise > 0), table.binary & (table.noise <= 0)
    assert table.suspected(table.binary, mine=mine, yours=yours) == ["mine and yours add up to the label"]
    zeros, mostly = (np.where(table.random.random(N) < 0.9, 0.0, values) for values in (amount, part))
    assert table.suspected(zeros, classes=False, mostly=mostly, positive=np.where(mostly > 0, 1.0, 0.0)) == []


@pytest.mark.full
def test_columns_that_hold_the_same_numbers_are_left_out_together():
    random, rows = np.random.default_rng(3), 1500
    start, died = random.integers(0, 2000, rows), random.random(rows) < 0.6
    time = np.where(died, random.random(rows) * (3000 - start), 3000 - start).round()
    twin = np.where(random.random(rows) < 0.1, time - 5, time)
    matrix = np.column_stack([start, time, twin, random.normal(size=rows)]).astype(np.float64)
    (leak,) = suspected_leaks(matrix, ["start", "time", "twin", "noise"], [False] * 4, died, classes=True)
    assert str(leak).startswith("time and twin tell too much of the label: without them the AUC falls from 0.9")


@pytest.mark.parametrize("is_late", [True, False])
def test_columns_that_never_have_a_value_in_the_same_row_are_no_obstacle(is_late):
    """As two versions of a form, of which the second asks something else."""
    table = Table()
    first = (np.arange(N) < 0.7 * N) if is_late else table.random.random(N) < 0.7
    columns = {"asked": np.where(first, table.amount, np.nan), "asked_later": np.where(first, np.nan, table.amount)}
    leaks = table.suspected(np.median(table.amount) < table.amount, **columns)
    assert any(leak.startswith("asked ") for leak in leaks)
    few = np.where(np.arange(N) < 1, table.noise, np.nan)
    assert table.suspected(table.amount, classes=False, few=few) == []


def test_few_rows_agree_by_chance_and_of_very_many_evenly_spaced_ones_are_used():
    few = np.array([[0.0]] * 4 + [[1.0]] * 4)
    assert suspected_leaks(few, ["few"], [False], few[:, 0] > 0, classes=True) == []
    many = np.arange(3.0 * MAX_ROWS + 1)
    assert suspected_leaks(many[:, None], ["many"], [False], many > MAX_ROWS, classes=True)


def test_a_column_null_in_just_the_rows_without_a_label_and_a_nearly_perfect_model_are_suspected():
    assert [leak.columns for leak in null_with_the_label({"a": 30, "b": 29, "c": 30}, 30, ["a", "b"])] == [("a",)]
    assert null_with_the_label({"a": 5}, 5, ["a"]) == [], "so few rows may agree by chance"
    (leak,) = nearly_perfect({"roc_auc": 0.9995, "accuracy": 0.98}, 60)
    assert str(leak) == "the model is nearly perfect (roc_auc 0.9995 on 60 rows)"
    assert nearly_perfect({"roc_auc": 0.998}, 600) == nearly_perfect({"r2": 1.0}, 20) == []


def test_rows_on_both_sides_of_the_split_are_a_finding_unless_they_agree_by_chance():
    table = Table()
    rows = pl.DataFrame({"amount": table.amount, "noise": table.noise, "label": table.binary})
    learned, judged = rows[:300], pl.concat([rows[300:], rows[:25]])
    (leak,) = on_both_sides(learned, judged, ["amount", "noise"], "label")
    assert str(leak) == (
        "the model is judged on rows that it has learned from: "
        "25 of 125 evaluation rows have the features and the label of a training row"
    )
    assert on_both_sides(learned, rows[300:], ["amount", "noise"], "label") == []
    other_labels = judged.with_columns(~pl.col("label"))
    assert on_both_sides(learned, other_labels, ["amount", "noise"], "label") == []


def test_rows_of_one_entity_on_both_sides_of_a_split_by_row_are_a_finding_though_measurements_differ():
    """Visits of patients, whose age and outcome are the same at each; a unique and a coarse column name nobody."""
    random = np.random.default_rng(7)
    patient, severity = np.repeat(np.arange(300), 6), random.normal(size=300)
    rows = pl.DataFrame(
        {
            "age": random.normal(50, 10, 300).round(3)[patient],
            "shop": random.integers(0, 200, 1800),
            "bilirubin": (severity[patient] + random.normal(size=1800)).round(2),
            "unique": random.normal(size=1800),
            "label": (severity + random.normal(size=300) > 0.5)[patient],
        }
    )
    at_random, by_patient = random.random(1800) < 0.2, patient % 5 == 0
    learned, judged = rows.filter(~at_random), rows.filter(at_random)
    assert on_both_sides(learned, judged, rows.columns[:-1], "label") == []
    (leak,) = of_known_entities(learned, judged, rows.columns[:-1], "label")
    assert leak.reason.startswith("is judged on entities that it has learned from: ")
    assert "evaluation rows have a value of age that training rows have too, with the same label." in leak.reason
    assert leak.reason.endswith("belongs in features.key and model.train.group")
    assert of_known_entities(learned, judged, ["shop", "bilirubin", "unique"], "label") == []
    assert of_known_entities(rows.filter(~by_patient), rows.filter(by_patient), rows.columns[:-1], "label") == []
