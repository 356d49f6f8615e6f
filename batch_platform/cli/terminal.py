"""The output of the commands: progress bars on a terminal, plain lines otherwise, JSON on request.

Every command imports this module, so it imports nothing heavy.
"""

import dataclasses
import functools
import gc
import json
import logging
import math
import os
import shlex
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, date, datetime
from threading import Event, Thread, Timer
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console

from batch_platform.declaration.errors import WrongUseError, counted, first_few, listed
from batch_platform.declaration.redaction import LOG_VARIABLE, logs_json, redact, redacted_output

if TYPE_CHECKING:
    from rich.status import Status

    from batch_platform.components.progress import Listener, RunProgress
    from batch_platform.declaration.calendar import Partition
    from batch_platform.models.baseline import Baseline
DEBUG_VARIABLE = "BATCH_PLATFORM_DEBUG"
WIDE = 10_000  # width without a terminal, so that nothing is cut off
_JOINERS = "\u200c\u200d"  # invisible characters inside words and emoji
SECONDS_BETWEEN_LINES = 10  # lines of progress without a terminal, and longest silence of a command
SECONDS_OF_LOADING = 2  # silence at the start of a command, after which it says on a terminal that it loads
A_FEW, MINUTE, HOUR = 10, 60, 3600  # seconds
out = Console(highlight=False, emoji=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDE)
err = Console(highlight=False, emoji=False, soft_wrap=True, stderr=True)
_LOADED_AT = monotonic()
_heard_at = _LOADED_AT  # when something was last shown, the same until anything is; infinite while a person is asked
_news: deque[str] = deque(maxlen=1)  # the newest progress, as long as it was not shown


def say_if_loading_takes_long(seconds: float = SECONDS_OF_LOADING) -> Timer:
    """Say on the terminal that the project loads, if nothing else is shown soon; returns the timer that waits."""

    def say_so() -> None:
        if err.is_terminal and not is_json() and _heard_at == _LOADED_AT:
            _print(err, "info", "Loading the project ...")

    timer = Timer(seconds, say_so)
    timer.daemon = True
    timer.start()
    return timer


def busy(text: str) -> "Status":
    """A spinner on standard error with what is being done."""
    _heard(monotonic())
    return err.status(text)


def examples(*arguments: str) -> str:
    """The end of a command's help: calls of the command with these arguments, each on a line of its own."""
    return "\n".join(("\b", "Examples:", *(f"  batch-platform {line}" for line in arguments)))


def debug_hint() -> str | None:
    """Say how the same command shows a traceback; None if it does."""
    again = shlex.join(["batch-platform", "--debug", *sys.argv[1:]])
    return None if debugging() else f"to see the traceback, call {again}"


def debugging() -> bool:
    """Return whether to show tracebacks and Dagster's own log."""
    return bool(os.environ.get(DEBUG_VARIABLE))


@contextmanager
def reporting(*, as_json: bool = False) -> Generator[None]:
    """Reserve standard output for this module; everything else that is printed goes to standard error, redacted.

    As JSON, `report` alone prints there: lines, tables and progress bars are left out.
    """
    out.file, out.quiet = sys.stdout, as_json
    with redacted_output(), redirect_stdout(sys.stderr):
        yield


def is_json() -> bool:
    """Return whether the command reports as JSON."""
    return out.quiet


def reports(command: Callable[..., None]) -> Callable[..., None]:
    """Keep what users' code prints out of the report of a command."""

    @functools.wraps(command)
    def reserved(*args: object, as_json: bool = False, **options: object) -> None:
        with reporting(as_json=as_json), _signs_of_life():
            command(*args, **options)

    return reserved


def command(name: str, *calls: str, group: click.Group | None = None) -> Callable[[Callable[..., None]], click.Command]:
    """A command that reports, also as JSON, with the object of its context as first argument, and calls as examples."""

    def make(function: Callable[..., None]) -> click.Command:
        made = click.command(name, epilog=examples(*calls))(click.pass_obj(reports(function)))
        made.params.append(click.Option(["--json", "as_json"], is_flag=True, help="Report as JSON."))
        if group is not None:
            group.add_command(made)
        return made

    return make


@contextmanager
def _signs_of_life() -> Generator[None]:
    """Break the silence whenever nothing was shown for ten seconds, unless the command reports as JSON."""
    began, done = monotonic(), Event()

    def watch() -> None:
        silence = 0.0
        while not done.wait(min(max(0.01, SECONDS_BETWEEN_LINES - silence), SECONDS_BETWEEN_LINES)):
            silence = monotonic() - max(_heard_at, began)
            if silence >= SECONDS_BETWEEN_LINES and not is_json():
                break_silence(monotonic() - began)

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def break_silence(seconds: float) -> None:
    """Print the newest progress, or only for how long the command has been at work if there is no news."""
    line = _news.pop() if _news else ""
    if line or out.is_terminal:  # above the bar
        say(line or f"still at work after {seconds:.0f} s")
    else:  # not among rows that may go to a file
        _print(err, "info", f"still at work after {seconds:.0f} s")


def _heard(at: float) -> None:
    global _heard_at  # noqa: PLW0603 - there is one terminal
    _heard_at = at


@contextmanager
def uncollected() -> Generator[None]:
    """Pause the garbage collector while modules and definitions load: it takes long and finds nothing there."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class _JsonLines(logging.Formatter):
    """Formats each record of Python's logging as a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        more = {"exception": redact(self.formatException(record.exc_info))} if record.exc_info else {}
        return _json_line(record.levelname.lower(), record.getMessage(), logger=record.name, **more)


def log_as_declared() -> None:
    """Let Python's logging and warnings write lines of JSON where BATCH_PLATFORM_LOG says so.

    Raises:
        WrongUseError: The variable has another value than "json".
    """
    if not (value := os.environ.get(LOG_VARIABLE)):
        return
    if not logs_json():
        msg = f"{LOG_VARIABLE} is {value!r}."
        raise WrongUseError(msg, hint=f"{LOG_VARIABLE}=json writes lines of JSON; leave it out for plain text.")
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines())
    logging.basicConfig(handlers=[handler], force=True)
    logging.captureWarnings(capture=True)


def _json_line(level: str, message: str, **more: object) -> str:
    line = {"time": datetime.now(UTC).isoformat(), "level": level, "message": redact(message), **more}
    return json.dumps(_plain(line), ensure_ascii=False)


def _print(console: Console, level: str, text: str, prefix: str = "") -> None:
    """Print a line of text, or of JSON where BATCH_PLATFORM_LOG says so."""
    _heard(monotonic())
    if logs_json():
        console.file.write(f"{_json_line(level, text.strip())}\n")
        console.file.flush()  # a log shows it while the command still works
    else:
        console.print(f"{prefix}{_visible(text)}", markup=False)


def say(text: str = "") -> None:
    """Print one plain line; nothing where the command reports as JSON."""
    if not is_json():
        _print(out, "info", text)


def fail(text: str) -> None:
    """Print an error as one paragraph on standard error."""
    _print(err, "error", " ".join(redact(text).split()), "Error: ")


def can_ask() -> bool:
    """Return whether a person can answer: input and output are a terminal, and the report is not JSON."""
    return sys.stdin.isatty() and out.file.isatty() and not is_json()


T = TypeVar("T")


def _answer(prompt: Callable[..., T], question: str, **options: object) -> T:
    """Ask on the terminal, where nobody expects a sign of life while a person thinks."""
    _heard(math.inf)
    answer = prompt(question, err=True, **options)
    _heard(monotonic())
    return answer


def ask(question: str, default: str | None, allowed: Sequence[str], *, several: bool = False) -> str:
    """Ask on the terminal until the answer is allowed; with the default "" it may be empty, without a default it may not.

    The answer may name `several` with commas between.
    """
    while True:
        answer = str(_answer(click.prompt, question, default=default, show_default=bool(default))).strip()
        names = [answer, *(answer.split(",") if several else [])]
        if answer in allowed or answer == default or (several and all(name.strip() in allowed for name in names[1:])):
            return answer
        say(f"{answer!r} is not possible; choose from {listed(allowed)}.")


def require_confirmed(refusal: str, question: str) -> bool:
    """Ask for a yes, which is not the default; raises WrongUseError, which begins with the refusal, without a terminal."""
    if not can_ask():
        msg = f"{refusal} without a confirmation, and there is no terminal to ask on."
        raise WrongUseError(msg, hint="add --yes.")
    return _answer(click.confirm, question, default=False)


def warn(text: str) -> None:
    """Print a warning on standard error."""
    _print(err, "warning", redact(text), "Warning: ")


def report(value: object) -> None:
    """Print a report if the command reports as JSON; times are ISO 8601, and NaN and infinity are null."""
    if is_json():
        out.file.write(json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, separators: bool = True) -> None:
    """Print a table with numbers aligned to the right; nothing where the command reports as JSON.

    Whole numbers that may be keys have no `separators` of thousands, so that they can be copied.
    """
    if is_json():
        return
    _heard(monotonic())
    if logs_json():
        for row in rows:
            out.file.write(f"{_json_line('info', '', row=dict(zip(columns, row, strict=True)))}\n")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for at, name in enumerate(columns):
        there = [row[at] for row in rows if row[at] is not None]
        table.add_column(name, justify="right" if there and all(map(_is_number, there)) else "left")
    for row in rows:
        table.add_row(*(Text(_visible(_text(value, separators=separators))) for value in row))
    out.print(table)


def ends(keys: Sequence[str]) -> str:
    """Some keys in one phrase: the only one, or the first and the last."""
    return keys[0] if keys[0] == keys[-1] else f"{keys[0]} to {keys[-1]}"


def span(keys: Sequence[str]) -> str:
    """Some keys in one phrase: the only one, or the first and the last with their number."""
    return ends(keys) if len(keys) == 1 else f"{ends(keys)} ({len(keys):,})"


def spans(ranges: Sequence[Sequence["Partition"]]) -> str:
    """Ranges of partitions in one phrase: the first and the last key of each, and the number of all partitions."""
    shown = first_few([ends([members[0].key, members[-1].key]) for members in ranges])
    count = sum(map(len, ranges))
    return f"{shown} ({count:,})" if count > 1 else shown


def roughly(seconds: float) -> str:
    """A length of time in one phrase, as exact as an estimate is."""
    if seconds < A_FEW:
        return "a few seconds"
    if seconds < 2 * MINUTE:
        return f"about {round(seconds, -1):.0f} s"
    return f"about {seconds / MINUTE:.0f} min" if seconds < 2 * HOUR else f"about {seconds / HOUR:.0f} h"


def learned_from(rows: int, days: float | None) -> str:
    """Say how much a model learned from; nothing for an imported model. A snapshot has no days."""
    length = ""
    if days is not None:
        length = f" of {counted(round(days), 'day') if days >= 1 else counted(round(days * 24), 'hour')}"
    return f"learned from {rows:,} rows{length}" if rows else ""


def show_fields(values: Mapping[str, Any], indent: int = 0) -> None:
    """Print names and values, nested values below their name."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            say(f"{' ' * indent}{name}:")
            show_fields(value, indent + 2)
        else:
            say(f"{' ' * indent}{name}: {_text(value)}")


def show_metrics(metrics: Mapping[str, float], baseline: "Baseline | None", *, refit: bool, judged: str) -> None:
    """Print each metric on the evaluation rows beside that of the trivial baseline; `judged` says what the judged fit learned from."""
    if not metrics:
        return
    name, of_baseline = (baseline.name, baseline.metrics) if baseline else ("none", {})
    say(f"metrics on the evaluation rows; trivial baseline: {name}")
    if refit:
        learned = judged and f", which {judged}"
        say(f"  They are those of the judged fit{learned}. The fit that serves learned from these rows too.")
    rows = [(metric, value, of_baseline.get(metric)) for metric, value in sorted(metrics.items())]
    show_table(("metric", "value", "baseline"), rows)


@contextmanager
def progress(totals: Mapping[str, int]) -> Generator["Listener"]:
    """Show how far the runs of a command are: one bar on a terminal, now and then a line otherwise, nothing as JSON.

    `totals` holds the number of planned partitions, by asset. Each run knows only its own range, and a later one may find a
    partition done. Without a terminal the newest progress is printed once nothing else was for a while: partitions finish in
    groups, whose last one tells most.
    """
    finished: defaultdict[str, set[str]] = defaultdict(set)

    def count(progress: "RunProgress") -> tuple[float, int]:
        if progress.of is None:
            finished[progress.asset].add(progress.partition_key)
        so_far = len(finished[progress.asset]) + progress.part
        return so_far, max(math.ceil(so_far), totals.get(progress.asset, progress.total))

    def note(progress: "RunProgress") -> None:
        so_far, total = count(progress)
        _news.append(f"{progress.asset}: {dataclasses.replace(progress, done=math.floor(so_far), total=total)}")

    if is_json():
        yield lambda _: None
        return
    if not out.is_terminal or logs_json():
        _news.clear()
        yield note
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    texts = TextColumn("{task.description:<12}"), TextColumn("{task.fields[last]}")
    columns = texts[0], BarColumn(), MofNCompleteColumn(), texts[1], TimeRemainingColumn()
    with Progress(*columns, console=out) as bars:
        bar = bars.add_task("", total=sum(totals.values()), visible=False, last="")

        def show(progress: "RunProgress") -> None:
            _, total = count(progress)
            of = f" of {progress.of:,}" if progress.of else ""
            pace = f"  {progress.rows_per_second:,.0f} rows/s" if progress.rows_per_second else ""
            last = f"{progress.partition_key}  {progress.rows:,}{of} rows{pace}"
            done, planned = sum(map(len, finished.values())) + progress.part, {**totals, progress.asset: total}
            _heard(monotonic())
            bars.update(
                bar, description=progress.asset, completed=done, total=sum(planned.values()), last=last, visible=True
            )

        yield show


def _plain(value: object) -> object:
    """Convert records, times and containers to JSON types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _visible(text: str) -> str:
    """Escape characters that a terminal would obey or cannot encode, since data may contain anything.

    Right-to-left text stays as it is; characters that change the direction of the following text are escaped.
    """
    return "".join(char if char.isprintable() or char in _JOINERS else repr(char)[1:-1] for char in text)


def _text(value: object, *, separators: bool = False) -> str:
    if value is None:
        return "-"
    if separators and isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S %Z}".rstrip()
    return f"{value:.4f}" if isinstance(value, float) else str(value)
