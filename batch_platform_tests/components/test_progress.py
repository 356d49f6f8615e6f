"""Progress: by partitions and by the rows of a large one, with its pace and the time that is left."""

import pytest

from batch_platform.cli import terminal
from batch_platform.components.progress import Pace


def test_progress_within_a_large_partition_shows_rows_pace_and_time_left():
    times = iter([0.0, 2.0, 4.0, 8.0])
    pace = Pace("predictions", 1, clock=lambda: next(times))
    first, second = pace.reached("2024", 250, 1000), pace.reached("2024", 500, 1000)
    assert (first.part, first.rows_per_second, first.seconds_left) == (0.25, 125, 6)
    assert str(second) == "0 of 1, 2024, 500 of 1,000 rows, 125 rows/s, 4 s left"
    done = pace.reached("2024", 1000)
    assert (done.done, done.of, done.rows_per_second, done.seconds_left) == (1, None, 125, 0)


def test_rows_that_are_reported_twice_are_counted_once():
    times = iter([0.0, 1.0, 2.0, 4.0, 4.1])
    pace = Pace("predictions", 4, clock=lambda: next(times))
    pace.reached("a", 100, 100)
    pace.reached("a", 100)
    assert pace.reached("b", 60).rows_per_second == 50
    last = pace.reached("c", 60, 120)
    assert (last.rows_per_second, last.seconds_left) == (220 / 4.1, pytest.approx(1.5 * 4.1 / 2.5))


def test_partitions_that_are_committed_together_are_no_measure_of_speed_before_all_are_reported():
    commits = {10.0: 40, 20.0: 40, 25.0: 20}
    times = iter([0.0, *(at for at, partitions in commits.items() for _ in range(partitions))])
    pace = Pace("features", 100, clock=lambda: next(times))
    left = [pace.reached(f"day {day}", 24).seconds_left for day in range(100)]
    assert left[:40] == [None] * 40
    assert left[40] == pytest.approx(59 * 10 / 40)
    assert left[80] == pytest.approx(19 * 20 / 80)
    assert left[-1] == 0


def test_a_steady_flow_of_reports_is_measured_on_the_way():
    pace = Pace("features", 100, clock=iter([n / 10 for n in range(101)]).__next__)
    left = [pace.reached(f"day {day}", 24).seconds_left for day in range(100)]
    assert left[3] is None
    assert left[49] == pytest.approx(5)


def test_without_a_terminal_a_line_shows_the_progress_at_most_every_ten_seconds(capsys, monkeypatch):
    times = iter(range(1000))  # each report is a second after the last one
    monkeypatch.setattr(terminal, "monotonic", lambda: next(times))
    totals = {"features": 8, "predictions": 30}
    with terminal.reporting(), terminal.progress(totals) as listener:
        for asset, total in totals.items():
            pace = Pace(asset, total, clock=lambda: 0.0)
            for number in range(total):
                listener(pace.reached(f"day {number}", 100))
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "predictions: 2 of 30, day 1, 100 rows",
        "predictions: 12 of 30, day 11, 100 rows",
        "predictions: 22 of 30, day 21, 100 rows",
    ]
