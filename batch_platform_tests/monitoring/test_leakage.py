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
RANDOM = np.random.default_rng(1)
NOISE = RANDOM.normal(size=N)
BINARY = RANDOM.random(N) < 0.3
THREE = RANDOM.integers(0, 3, N)
AMOUNT = RANDOM.gamma(2.0, 40.0, N)


def is_flagged(column: np.ndarray, truth: np.ndarray, *, categorical: bool = False, classes: bool = True) -> bool:
    """Whether a column is flagged beside one of noise, which never is."""
    matrix = np.column_stack([NOISE[: len(column)], column.astype(np.float64)])
    leaks = suspected_leaks(matrix, ["noise", "column"], [False, categorical], truth, classes=classes)
    assert [leak.columns for leak in leaks] in ([], [("column",)])
    return bool(leaks)


def test_a_number_that_separates_two_classes_is_flagged_in_either_direction():
    assert is_flagged(BINARY * 1.0, BINARY)
    assert is_flagged(5 - BINARY * 3 + np.abs(NOISE) / 10, BINARY)
    assert is_flagged(BINARY * 1.0, np.where(BINARY, "yes", "no"))


def test_a_category_that_gives_the_class_away_is_flagged():
    assert is_flagged(np.where(BINARY, RANDOM.integers(0, 3, N), RANDOM.integers(3, 6, N)), BINARY, categorical=True)
    assert is_flagged((THREE + 1) % 3, THREE, categorical=True)


@pytest.mark.full
def test_a_number_that_stands_for_one_of_many_classes_is_flagged():
    assert is_flagged(THREE, THREE)
    assert is_flagged((THREE * 7) % 3, np.array(["a", "b", "c"])[THREE])


def test_a_column_that_separates_one_of_many_classes_is_flagged_if_no_other_does():
    assert is_flagged(THREE == 0, THREE)
    assert suspected(THREE, mark=THREE == 0, length=(THREE == 0) * 9 + NOISE) == []


def test_a_column_that_has_a_value_only_after_the_outcome_is_flagged():
    assert is_flagged(np.where(BINARY, NOISE, np.nan), BINARY)
    assert is_flagged(np.where(BINARY, np.nan, RANDOM.integers(0, 3, N)), BINARY, categorical=True)


@pytest.mark.parametrize(
    "column",
    [
        -3 * AMOUNT,
        np.where(BINARY, np.nan, AMOUNT),
        *(pytest.param(column, marks=pytest.mark.full) for column in (AMOUNT, np.log(AMOUNT), AMOUNT**3)),
    ],
)
def test_a_number_in_the_order_of_the_label_is_flagged(column):
    assert is_flagged(column, AMOUNT, classes=False)


def test_a_category_that_gives_the_number_away_is_flagged():
    kinds = RANDOM.integers(0, 4, N)
    assert is_flagged(kinds, kinds * 10.0, categorical=True, classes=False)


@pytest.mark.parametrize("categorical", [True, False])
@pytest.mark.parametrize(
    "column",
    [
        np.arange(N),
        np.zeros(N),
        np.full(N, np.nan),
        np.where(RANDOM.random(N) < 0.1, 1 - BINARY, BINARY),
        RANDOM.integers(0, 200, N),
    ],
    ids=["names that never come back", "constant", "all null", "right nine times of ten", "noise of many kinds"],
)
def test_an_honest_column_is_not_flagged(column, categorical):
    assert not is_flagged(column, BINARY, categorical=categorical)
    assert not is_flagged(column, AMOUNT, categorical=categorical, classes=False)


def test_too_few_rows_agree_by_chance():
    few = np.array([[0.0]] * 4 + [[1.0]] * 4)
    assert not is_flagged(few[:, 0], few[:, 0] > 0)
    assert not is_flagged(few[:, 0], few[:, 0], categorical=True, classes=False)


def test_evenly_spaced_rows_of_many_are_used():
    many = np.arange(3.0 * MAX_ROWS + 1)
    assert suspected_leaks(many[:, None], ["many"], [False], many > MAX_ROWS, classes=True)


def suspected(truth: np.ndarray, *, classes: bool = True, **columns: np.ndarray) -> list[str]:
    """What is suspected of some numbers beside one of noise."""
    matrix = np.column_stack([NOISE, *(column.astype(np.float64) for column in columns.values())])
    names = ["noise", *columns]
    return [str(leak) for leak in suspected_leaks(matrix, names, [False] * len(names), truth, classes=classes)]


def test_a_copy_of_the_label_with_a_few_flips_is_suspected_however_rare_the_label():
    for truth in (BINARY, RANDOM.random(N) < 0.15, THREE, np.where(BINARY, "yes", "no")):
        numbers = np.unique(truth, return_inverse=True)[1]
        flipped = np.where(RANDOM.random(N) < 0.05, (numbers + 1) % (numbers.max() + 1), numbers)
        (found,) = suspected(truth, copy=7 - flipped)
        assert found.startswith("copy repeats the label with few exceptions (9")


def test_honest_strong_columns_are_not_suspected():
    score = BINARY * 3.2 + RANDOM.normal(size=N)  # an area under the curve of about 0.99
    flag = np.where(RANDOM.random(N) < 0.1, ~BINARY, BINARY)
    rare = RANDOM.random(N) < 0.03
    assert suspected(BINARY, score=score, flag=flag) == []
    assert suspected(rare, always=RANDOM.random(N) < 0.03, score=rare * 3.0 + RANDOM.normal(size=N)) == []
    assert (
        suspected(
            AMOUNT, classes=False, near=AMOUNT + RANDOM.normal(size=N) * 5, half=AMOUNT / 2 + 3 * RANDOM.normal(size=N)
        )
        == []
    )


def test_two_columns_that_add_up_to_the_label_or_differ_by_it_are_suspected_together():
    part = RANDOM.gamma(2.0, 20.0, N).round(2)
    gaps = np.where(RANDOM.random(N) < 0.1, np.nan, part)
    total = part + AMOUNT
    assert suspected(total, classes=False, part=part, rest=AMOUNT) == ["part and rest add up to the label"]
    assert suspected(AMOUNT, classes=False, part=gaps, total=total) == ["part and total differ by the label"]
    mine, yours = BINARY & (NOISE > 0), BINARY & (NOISE <= 0)
    assert suspected(BINARY, mine=mine, yours=yours) == ["mine and yours add up to the label"]
    zeros = np.where(RANDOM.random(N) < 0.9, 0.0, AMOUNT)
    mostly = np.where(RANDOM.random(N) < 0.9, 0.0, part)
    assert suspected(zeros, classes=False, mostly=mostly, noise_too=np.where(mostly > 0, 1.0, 0.0)) == []


def test_a_column_that_is_null_in_just_the_rows_without_a_label_is_suspected():
    assert [leak.columns for leak in null_with_the_label({"a": 30, "b": 29, "c": 30}, 30, ["a", "b"])] == [("a",)]
    assert null_with_the_label({"a": 5}, 5, ["a"]) == [], "so few rows may agree by chance"


def test_a_model_that_is_nearly_perfect_on_enough_rows_is_suspected():
    (leak,) = nearly_perfect({"roc_auc": 0.9995, "accuracy": 0.98}, 60)
    assert str(leak) == "the model is nearly perfect (roc_auc 0.9995 on 60 rows)"
    assert nearly_perfect({"roc_auc": 0.998}, 600) == nearly_perfect({"r2": 1.0}, 20) == []


def test_columns_that_hold_the_same_numbers_are_left_out_together():
    random = np.random.default_rng(3)
    rows = 1500
    start = random.integers(0, 2000, rows)
    died = random.random(rows) < 0.6
    time = np.where(died, random.random(rows) * (3000 - start), 3000 - start).round()
    twin = np.where(random.random(rows) < 0.1, time - 5, time)
    matrix = np.column_stack([start, time, twin, random.normal(size=rows)]).astype(np.float64)
    (leak,) = suspected_leaks(matrix, ["start", "time", "twin", "noise"], [False] * 4, died, classes=True)
    assert str(leak).startswith("time and twin tell too much of the label: without them the AUC falls from 0.9")


@pytest.mark.full
def test_the_label_before_is_no_leak_and_a_copy_with_as_many_exceptions_is():
    random = np.random.default_rng(4)
    state = np.zeros((40, 50), dtype=np.int64)  # of a machine in each column
    for at in range(1, 40):
        state[at] = np.where(random.random(50) < 0.04, 1 - state[at - 1], state[at - 1])
    before, truth, machine = np.roll(state, 1, axis=0).ravel(), state.ravel(), np.tile(np.arange(50), 40)
    copy = np.where(random.random(2000) < 0.04, 1 - truth, truth)
    for column, leaks in ((before, []), (copy, [("column",)])):
        matrix = np.column_stack([random.normal(size=2000), column])
        found = suspected_leaks(matrix, ["noise", "column"], [False] * 2, truth, classes=True, entities=[machine])
        assert [leak.columns for leak in found] == leaks


def test_rows_on_both_sides_of_the_split_are_a_finding_unless_they_agree_by_chance():
    rows = pl.DataFrame({"amount": AMOUNT, "noise": NOISE, "label": BINARY})
    learned, judged = rows[:300], pl.concat([rows[300:], rows[:25]])
    (leak,) = on_both_sides(learned, judged, ["amount", "noise"], "label")
    assert str(leak) == (
        "the model is judged on rows that it has learned from: "
        "25 of 125 evaluation rows have the features and the label of a training row"
    )
    assert on_both_sides(learned, rows[300:], ["amount", "noise"], "label") == []
    other_labels = judged.with_columns(~pl.col("label"))
    assert on_both_sides(learned, other_labels, ["amount", "noise"], "label") == []
    few_values = rows.select(noise=pl.col("noise") > 0, label="noise").with_columns(pl.col("label") > 0)
    assert on_both_sides(few_values[:300], few_values[300:], ["noise"], "label") == []


@pytest.mark.parametrize("slope", [0.0, 0.5], ids=["at random", "more likely for large amounts"])
def test_no_column_marks_a_rare_class_because_nearly_all_rows_are_of_the_other_one(slope):
    random, rows = np.random.default_rng(5), 20_000
    amount = random.lognormal(3.0, 1.0, rows)
    kinds = [random.integers(0, many, rows) for many in (7, 12, 24)]  # weekdays, kinds of merchants, hours
    truth = random.random(rows) < 0.006 * amount**slope / np.mean(amount**slope)
    matrix, names = np.column_stack([amount, *kinds]), ["amount", "weekday", "merchant", "hour"]
    assert suspected_leaks(matrix, names, [False, False, True, False], truth, classes=True) == []
    charged_back = np.where(truth & (random.random(rows) < 0.6), random.integers(0, 2, rows), 2)
    (leak,) = suspected_leaks(
        np.column_stack([matrix, charged_back]), [*names, "charged_back"], [False] * 5, truth, classes=True
    )
    assert leak.columns == ("charged_back",)
    assert leak.reason.startswith("has values that only one class has (6")


@pytest.mark.parametrize("share", [0.001, 0.006, 0.02])
def test_coarse_features_that_recur_by_chance_are_no_finding_however_rare_the_label_and_the_same_rows_are(share):
    random, rows = np.random.default_rng(6), 4_000
    values = {name: random.integers(0, many, rows) for name, many in (("weekday", 7), ("shop", 40), ("hour", 96))}
    table = pl.DataFrame(values | {"label": random.random(rows) < share})
    learned, judged = table[:2_500], table[2_500:]
    again = judged.join(learned, on=[*values]).height
    assert 0.05 < again / judged.height < 0.15
    assert on_both_sides(learned, judged, [*values], "label") == []
    copied = pl.concat([learned[::4], learned.filter("label")])
    assert len(on_both_sides(learned, copied, [*values], "label")) == 1


def visits(patients: int = 300, each: int = 6) -> pl.DataFrame:
    """Visits of patients, whose age and outcome are the same at each, as far as a table of follow-ups says."""
    random = np.random.default_rng(7)
    of_patient = np.repeat(np.arange(patients), each)
    severity = random.normal(size=patients)
    return pl.DataFrame(
        {
            "age": random.normal(50, 10, patients).round(3)[of_patient],
            "sex": random.integers(0, 2, patients)[of_patient],
            "bilirubin": (severity[of_patient] + random.normal(size=len(of_patient))).round(1),
            "label": (severity + random.normal(size=patients) > 0.5)[of_patient],
            "patient": of_patient,
        }
    )


def test_rows_of_one_entity_on_both_sides_of_a_split_by_row_are_a_finding_though_measurements_differ():
    rows, features = visits(), ["age", "sex", "bilirubin"]
    at_random = np.random.default_rng(8).random(rows.height) < 0.2
    learned, judged = rows.filter(~at_random), rows.filter(at_random)
    assert on_both_sides(learned, judged, features, "label") == []
    (leak,) = of_known_entities(learned, judged, features, "label")
    assert leak.reason.startswith("is judged on entities that it has learned from: ")
    assert "evaluation rows have a value of age that training rows have too, with the same label." in leak.reason
    assert leak.reason.endswith("belongs in features.key and model.train.group")
    by_patient = rows["patient"] % 5 == 0
    assert of_known_entities(rows.filter(~by_patient), rows.filter(by_patient), features, "label") == []


def test_strong_coarse_and_unique_features_of_rows_held_out_at_random_are_no_entities():
    random, rows = np.random.default_rng(9), 3_000
    strong = random.normal(size=rows)
    table = pl.DataFrame(
        {
            "strong": strong.round(2),
            "shop": random.integers(0, 200, rows),
            "city": [f"city {number}" for number in random.integers(0, 60, rows)],
            "unique": random.normal(size=rows),
            "label": strong > 0.3,
        }
    )
    at_random = random.random(rows) < 0.2
    learned, judged = table.filter(~at_random), table.filter(at_random)
    features = ["strong", "shop", "city", "unique"]
    assert of_known_entities(learned, judged, features, "label") == []
    rare = table.with_columns(label=pl.col("strong") > 2.5)
    assert of_known_entities(rare.filter(~at_random), rare.filter(at_random), features, "label") == []


@pytest.mark.parametrize("filled", [1, 60])
def test_a_column_with_few_values_is_no_leak_and_no_obstacle(filled):
    random = np.random.default_rng(4)
    few, price = np.full(400, np.nan), random.normal(size=400)
    few[:filled] = random.normal(size=filled)
    columns = np.column_stack([few, price + random.normal(0, 0.02, 400), random.normal(size=400)])
    leaks = suspected_leaks(columns, ["fee", "estimate", "noise"], [False] * 3, price, classes=False)
    assert "fee" not in {column for leak in leaks for column in leak.columns}


@pytest.mark.parametrize("is_late", [True, False])
def test_columns_that_never_have_a_value_in_the_same_row_are_no_obstacle(is_late):
    """As two versions of a form, of which the second asks something else."""
    first = (np.arange(N) < 0.7 * N) if is_late else np.random.default_rng(5).random(N) < 0.7
    columns = {"noise": NOISE, "asked": np.where(first, AMOUNT, np.nan), "asked_later": np.where(first, np.nan, AMOUNT)}
    truth = np.median(AMOUNT) < AMOUNT
    found = suspected(truth, **columns), suspected(AMOUNT, classes=False, **columns)
    assert all(any(leak.startswith("asked ") for leak in leaks) for leaks in found)


OTHER = np.random.default_rng(2)
GROUP = OTHER.integers(0, 60, N)
DRAWN = OTHER.random(N) < OTHER.beta(2.0, 5.0, 60)[GROUP]


def mean_of_group(target: np.ndarray) -> np.ndarray:
    return (np.bincount(GROUP, weights=target) / np.bincount(GROUP))[GROUP]


def test_the_mean_of_the_label_over_the_group_of_a_row_is_flagged():
    assert is_flagged(mean_of_group(DRAWN), DRAWN)
    assert is_flagged(mean_of_group(DRAWN), np.where(DRAWN, "yes", "no"))
    assert is_flagged(1 - mean_of_group(DRAWN), DRAWN)
    assert is_flagged(mean_of_group(THREE == 2), THREE)
    assert is_flagged(np.where(NOISE > 1, np.nan, mean_of_group(AMOUNT)), AMOUNT, classes=False)


@pytest.mark.parametrize("rows", [100, *(pytest.param(rows, marks=pytest.mark.full) for rows in (1000, 10_000))])
def test_an_honest_rate_of_a_group_is_not_flagged(rows):
    for seed in range(20):
        random = np.random.default_rng(seed)
        group = random.integers(0, rows // 8, rows)
        rates = random.beta(2.0, 5.0, rows // 8)
        truth = random.random(rows) < rates[group]
        before = random.binomial(20, rates) / 20  # known from earlier rows
        matrix = np.column_stack([rates.round(2)[group], rates[group], before[group]])
        assert suspected_leaks(matrix, ["rounded", "true", "before"], [False] * 3, truth, classes=True) == []
