"""Suspected leaks: what each rule suspects and what it leaves alone; `test_leaky_columns` measures them on kinds of columns."""

import numpy as np
import polars as pl
import pytest

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
        return [str(leak) for leak in suspected_leaks(matrix, ["noise", *columns], kinds, truth, classes=classes)]


def test_a_column_that_gives_the_class_away_is_suspected():
    table = Table()
    binary, three, noise, random = table.binary, table.three, table.noise, table.random
    for truth, column, categorical in (
        (binary, 5 - binary * 3 + np.abs(noise) / 10, False),
        (np.where(binary, "yes", "no"), binary * 1.0, False),
        (binary, np.where(binary, random.integers(0, 3, N), random.integers(3, 6, N)), True),
        (three, (three + 1) % 3, True),
        (three, three == 0, False),
        (binary, np.where(binary, noise, np.nan), False),
        (binary, np.where(binary, np.nan, random.integers(0, 3, N)), True),
    ):
        (leak,) = table.suspected(truth, categorical=categorical, column=column)
        assert leak.startswith("column ")
    assert table.suspected(three, mark=three == 0, length=(three == 0) * 9 + noise) == [], "another one tells it too"


def test_a_column_that_gives_the_number_away_is_suspected():
    table = Table()
    kinds = table.random.integers(0, 4, N)
    for truth, column, categorical in (
        (table.amount, -3 * table.amount, False),
        (table.amount, np.where(table.binary, np.nan, table.amount), False),
        (kinds * 10.0, kinds, True),
    ):
        (leak,) = table.suspected(truth, classes=False, categorical=categorical, column=column)
        assert leak.startswith("column ")


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


def test_a_copy_of_the_label_with_a_few_flips_is_suspected_however_rare_the_label():
    table = Table()
    for truth in (table.binary, table.random.random(N) < 0.15, table.three):
        numbers = np.unique(truth, return_inverse=True)[1]
        flipped = np.where(table.random.random(N) < 0.05, (numbers + 1) % (numbers.max() + 1), numbers)
        (leak,) = table.suspected(truth, copy=7 - flipped)
        assert leak.startswith("copy repeats the label with few exceptions (9")


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


def test_columns_that_hold_the_same_numbers_are_left_out_together():
    random, rows = np.random.default_rng(3), 1500
    start, died = random.integers(0, 2000, rows), random.random(rows) < 0.6
    time = np.where(died, random.random(rows) * (3000 - start), 3000 - start).round()
    twin = np.where(random.random(rows) < 0.1, time - 5, time)
    matrix = np.column_stack([start, time, twin, random.normal(size=rows)]).astype(np.float64)
    (leak,) = suspected_leaks(matrix, ["start", "time", "twin", "noise"], [False] * 4, died, classes=True)
    assert str(leak).startswith("time and twin tell too much of the label: without them the AUC falls from 0.9")


def test_the_mean_of_the_label_over_the_group_of_a_row_is_suspected_and_an_honest_rate_of_it_is_not():
    table = Table()
    group = table.random.integers(0, 60, N)
    rates = table.random.beta(2.0, 5.0, 60)
    drawn = table.random.random(N) < rates[group]

    def mean_of_group(target: np.ndarray) -> np.ndarray:
        return (np.bincount(group, weights=target) / np.bincount(group))[group]

    for truth, column, classes in (
        (drawn, 1 - mean_of_group(drawn), True),
        (table.three, mean_of_group(table.three == 2), True),
        (table.amount, np.where(table.noise > 1, np.nan, mean_of_group(table.amount)), False),
    ):
        (leak,) = table.suspected(truth, classes=classes, column=column)
        assert leak.startswith("column is the mean of the label over a group")
    before = table.random.binomial(20, rates) / 20  # known from earlier rows
    assert table.suspected(drawn, rounded=rates.round(2)[group], true=rates[group], before=before[group]) == []


@pytest.mark.parametrize("slope", [0.0, 0.5], ids=["at random", "more likely for large amounts"])
def test_no_column_marks_a_rare_class_because_nearly_all_rows_are_of_the_other_one(slope):
    random, rows = np.random.default_rng(5), 20_000
    amount = random.lognormal(3.0, 1.0, rows)
    kinds = [random.integers(0, many, rows) for many in (7, 12)]  # weekdays, kinds of merchants
    truth = random.random(rows) < 0.006 * amount**slope / np.mean(amount**slope)
    charged_back = np.where(truth & (random.random(rows) < 0.6), random.integers(0, 2, rows), 2)
    matrix, names = np.column_stack([amount, *kinds, charged_back]), ["amount", "weekday", "merchant", "charged_back"]
    assert suspected_leaks(matrix[:, :3], names[:3], [False, False, True], truth, classes=True) == []
    (leak,) = suspected_leaks(matrix, names, [False] * 4, truth, classes=True)
    assert leak.columns == ("charged_back",)
    assert leak.reason.startswith("has values that only one class has (5")


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


@pytest.mark.parametrize("share", [0.001, 0.02])
def test_coarse_features_that_recur_by_chance_are_no_finding_however_rare_the_label_and_the_same_rows_are(share):
    random, rows = np.random.default_rng(6), 4_000
    values = {name: random.integers(0, many, rows) for name, many in (("weekday", 7), ("shop", 40), ("hour", 96))}
    table = pl.DataFrame(values | {"label": random.random(rows) < share})
    learned, judged = table[:2_500], table[2_500:]
    assert 0.05 < judged.join(learned, on=[*values]).height / judged.height < 0.15
    assert on_both_sides(learned, judged, [*values], "label") == []
    copied = pl.concat([learned[::4], learned.filter("label")])
    assert len(on_both_sides(learned, copied, [*values], "label")) == 1


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
