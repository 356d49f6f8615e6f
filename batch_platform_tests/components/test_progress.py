"""Progress: by partitions and by the rows of a large one, with its pace and the time that is left."""

from batch_platform.cli import terminal
from batch_platform.components.progress import Pace


def test_a_large_partition_is_told_by_its_rows_with_pace_and_time_left():
    times = iter([0.0, 2.0, 4.0, 8.0])
    pace = Pace("predictions", 1, clock=lambda: next(times))
    first, second = pace.on_the_way("2024", 250, 1000), pace.on_the_way("2024", 500, 1000)
    assert (first.part, first.rows_per_second, first.seconds_left) == (0.25, 125, 6)
    assert str(second) == "0 of 1, 2024, 500 of 1,000 rows, 125 rows/s, 4 s left"
    done = pace.finished("2024", 1000)
    assert (done.done, done.of, done.rows_per_second, done.seconds_left) == (1, None, 125, 0)


def test_rows_are_counted_once_whoever_tells_of_them():
    times = iter([0.0, 1.0, 2.0, 4.0])
    pace = Pace("predictions", 4, clock=lambda: next(times))
    pace.on_the_way("a", 100, 100)
    assert pace.finished("a", 100).rows_per_second == 50
    last = pace.finished("b", 60)
    assert (last.rows_per_second, last.seconds_left) == (40, 4)


def test_where_there_is_no_terminal_lines_are_few_and_grow_with_the_rows(capsys):
    with terminal.reporting(), terminal.progress({"predictions": 2}, quiet=False) as listener:
        pace = Pace("predictions", 2)
        for key in ("a", "b"):
            for rows in range(1000, 100_000, 1000):
                listener(pace.on_the_way(key, rows, 100_000))
            listener(pace.finished(key, 100_000))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == terminal.LINES
    assert lines[0].startswith("predictions: 0 of 2, a, 20,000 of 100,000 rows, ")
    assert lines[-1].startswith("predictions: 2 of 2, b, 100,000 rows, ")
