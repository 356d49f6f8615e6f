"""How the command line speaks: bars on a terminal, plain lines otherwise, JSON where it is asked for.

Knows nothing of pipelines. Imported by every command, so that nothing heavy is imported here.
"""

import dataclasses
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console

from batch_platform.declaration.redaction import redact

if TYPE_CHECKING:
    from rich.progress import TaskID

    from batch_platform.components.progress import Listener, RunProgress
DEBUG_VARIABLE = "BATCH_PLATFORM_DEBUG"
WIDE = 10_000  # columns where there is no terminal: nothing is cut
_JOINERS = "\u200c\u200d"  # parts of words and of pictures
LINES = 10  # at most so many lines of progress for an asset where there is no terminal
out = Console(highlight=False, emoji=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDE)
err = Console(highlight=False, emoji=False, soft_wrap=True, stderr=True)


def debugging() -> bool:
    """Whether tracebacks and Dagster's own log are asked for."""
    return bool(os.environ.get(DEBUG_VARIABLE))


@contextmanager
def reporting() -> Generator[None]:
    """Keep standard output for what this module says; what others print goes to standard error."""
    out.file = sys.stdout
    with redirect_stdout(sys.stderr):
        yield


def say(text: str = "") -> None:
    """One plain line."""
    out.print(_visible(text), markup=False)


def fail(text: str) -> None:
    """One paragraph on standard error."""
    err.print(f"Error: {_visible(' '.join(redact(text).split()))}", markup=False)


def warn(text: str) -> None:
    """A warning on standard error."""
    err.print(f"Warning: {_visible(text)}", markup=False)


def show_json(value: object) -> None:
    """A report as JSON; times are ISO 8601, what is no number is null."""
    out.file.write(json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table; numbers to the right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for at, name in enumerate(columns):
        numeric = any(_is_number(row[at]) for row in rows) and all(_is_number(row[at], None) for row in rows)
        table.add_column(name, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(Text(_visible(_cell(value))) for value in row))
    out.print(table)


def show_fields(values: Mapping[str, Any], indent: int = 0) -> None:
    """Names and values, nested ones below their name."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            say(f"{' ' * indent}{name}:")
            show_fields(value, indent + 2)
        else:
            say(f"{' ' * indent}{name}: {_text(value)}")


@contextmanager
def progress(totals: Mapping[str, int], *, quiet: bool) -> Generator["Listener"]:
    """Show how far each asset has come: a bar on a terminal, some lines otherwise, nothing if quiet.

    Args:
        totals: How many partitions are planned, by asset.
        quiet: Show nothing.
    """
    if quiet:
        yield lambda _: None
    elif out.is_terminal:
        with _bars() as show:
            yield _counted(totals, show)
    else:
        yield _counted(totals, _lines())


Show = Callable[["RunProgress", float, int], None]  # progress, how many partitions are done, also in part, of how many


def _counted(totals: Mapping[str, int], show: Show) -> "Listener":
    """Count over all runs: a run knows only of its own range."""
    done: Counter[str] = Counter()

    def tell(progress: "RunProgress") -> None:
        done[progress.asset] += progress.of is None
        so_far = done[progress.asset] + progress.part
        show(progress, so_far, max(math.ceil(so_far), totals.get(progress.asset, progress.total)))

    return tell


@contextmanager
def _bars() -> Generator[Show]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[last]}"),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, TimeRemainingColumn(), console=out) as bars:

        def show(progress: "RunProgress", done: float, total: int) -> None:
            if progress.asset not in tasks:
                tasks[progress.asset] = bars.add_task(progress.asset, total=total, last="")
            of = f" of {progress.of:,}" if progress.of else ""
            last = f"{progress.partition_key}  {progress.rows:,}{of} rows  {progress.rows_per_second:,.0f} rows/s"
            bars.update(tasks[progress.asset], completed=done, total=total, last=last)

        yield show


def _lines() -> Show:
    """At most LINES for an asset, by partitions or by the rows of a large one."""
    said: Counter[str] = Counter()

    def line(progress: "RunProgress", done: float, total: int) -> None:
        if (reached := math.floor(done * LINES / total)) > said[progress.asset]:
            said[progress.asset] = reached
            say(f"{progress.asset}: {dataclasses.replace(progress, done=math.floor(done), total=total)}")

    return line


def _plain(value: object) -> Any:  # noqa: ANN401 - JSON
    """Records, times and containers as JSON knows them."""
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


def _is_number(value: object, *others: object) -> bool:
    return (isinstance(value, int | float) and not isinstance(value, bool)) or value in others


def _cell(value: object) -> str:
    """A value in a table: numbers are amounts."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else _text(value)


def _visible(text: str) -> str:
    """What a terminal would obey, or could not encode, as an escape: data may hold anything, colours and bells included.

    Right-to-left text stays as it is; what turns the direction of what follows does not.
    """
    return "".join(one if one.isprintable() or one in _JOINERS else repr(one)[1:-1] for one in text)


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S %Z}".rstrip()
    return f"{value:.4f}" if isinstance(value, float) else str(value)
