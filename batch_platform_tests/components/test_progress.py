"""Progress: by partitions and by the rows of a large one, with its pace and the time that is left."""

from io import StringIO

import pytest
from rich.console import Console

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
    times = iter([0.0, 1.0, 2.0, 4.0, 5.0])
    pace = Pace("predictions", 4, clock=lambda: next(times))
    pace.reached("a", 100, 100)
    pace.reached("a", 100)
    assert pace.reached("b", 60).rows_per_second == 40
    last = pace.reached("c", 60, 120)
    assert (last.rows_per_second, last.seconds_left) == (44, pytest.approx(1.5 * 5 / 2.5))


def test_the_first_of_several_partitions_says_nothing_of_the_time_that_each_takes():
    times = iter([0.0, *(10.0 * (1 + day // 40) for day in range(100))])  # committed by forty
    pace = Pace("features", 100, clock=lambda: next(times))
    left = [pace.reached(f"day {day}", 24).seconds_left for day in range(100)]
    assert left[0] is None
    assert left[39] == pytest.approx(60 * 10 / 40)
    assert left[-1] == 0


def test_without_a_terminal_a_line_shows_the_newest_progress_of_partitions_that_finish_together(capsys):
    pace = Pace("features", 100, clock=iter([0.0, *[10.0] * 40]).__next__)
    with terminal.reporting(), terminal.progress({"features": 100}) as listener:
        listener(Pace("features", 1).reached("day 0", 24))  # of an earlier run; the next one finds it done
        for number in range(40):
            listener(pace.reached(f"day {number}", 24))
        terminal.break_silence(20)
        terminal.break_silence(30)
    shown = capsys.readouterr()
    assert shown.out == "features: 40 of 100, day 39, 24 rows, 96 rows/s, 15 s left\n"
    assert shown.err == "still at work after 30 s\n"


@pytest.mark.parametrize("says", [False, True])
def test_a_command_that_takes_long_to_load_says_so_once_on_a_terminal(monkeypatch, says):
    shown = StringIO()
    monkeypatch.setattr(terminal, "err", Console(file=shown, force_terminal=True, highlight=False))
    monkeypatch.setattr(terminal, "_heard_at", terminal._LOADED_AT)
    if says:
        terminal.warn("something else")
    terminal.say_if_loading_takes_long(0).join()
    assert ("Loading the project ...\n" in shown.getvalue()) is not says


def test_a_command_that_says_nothing_for_long_shows_that_it_is_at_work(capfd, monkeypatch):
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_LINES", 0.01)

    @terminal.reports
    def silent() -> None:
        while "still at work after " not in capfd.readouterr().err:
            pass

    silent()
