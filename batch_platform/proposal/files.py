"""Lay out how the files of a table are read, and write a proposed pipeline as YAML and SQL, to read, edit and keep.

The names come from the user's table: they are quoted identifiers in SQL, quoted scalars in YAML, and one line in comments.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from glob import escape
from pathlib import Path
from zoneinfo import ZoneInfo

import yaml

from batch_platform.declaration.calendar import Calendar, Duration, Partition
from batch_platform.declaration.errors import SourceError, WrongUseError, listed, shortened
from batch_platform.declaration.inputs import FILE, PLACEHOLDERS, ROW_IN_FILE, varies
from batch_platform.declaration.notation import name_of
from batch_platform.declaration.spec import ASSETS
from batch_platform.declaration.yaml_file import TYPE
from batch_platform.proposal.choices import BY_CONTENT, DAY_NUMBER, HELD_OUT, TAKEN_NAMES, Proposal, local_key
from batch_platform.proposal.origin import Origin, ending_of
from batch_platform.proposal.survey import Survey, TableColumn
from batch_platform.sources.files import files_of as files_in
from batch_platform.sources.objects import FilePath
from batch_platform.warehouse.sql import connect, quoted

MOST_MISSING = 0.1  # share of the partitions; if more have no file, files are made on some days only
_DATES = {  # how a date in a path is written, by the placeholder for it, and the key that it stands for
    "{partition_key}": (r"[0-9]{4}-[0-9]{2}-[0-9]{2}", lambda date: date),
    "{partition_date}": (r"(?:19|20)[0-9]{6}", lambda date: f"{date[:4]}-{date[4:6]}-{date[6:]}"),
    "{partition_month}": (r"[0-9]{4}-[0-9]{2}(?!-)", lambda month: f"{month}-01"),
}


@dataclass(frozen=True)
class Layout:
    """The way in which the files of a table are read."""

    origin: Origin
    note: str = ""  # remark for people; empty for one file in the usual notation
    past: Origin | None = None  # all files together, if each partition reads its own and its features also earlier ones


def layout(survey: Survey, proposal: Proposal) -> Layout:
    """Read each partition's own file where the names allow it and hold what they say, else all files together."""
    chosen = _laid_out(survey, proposal)
    return replace(chosen, note="; ".join(filter(None, [survey.origin.notation, chosen.note])))


def _laid_out(survey: Survey, proposal: Proposal) -> Layout:
    origin, windows = survey.origin, proposal.windows
    if not proposal.key and windows is None and not origin.is_one_file:
        origin = origin.read_with(number_rows=True)
    files = files_in(origin.as_table("rows")) if origin.kind not in ("duckdb", "delta", "sql") else []
    if len(files) <= 1:
        return Layout(origin)
    together = f"{len(files)} files, read together"
    dated = _dated(files)
    if dated is None or windows is None:
        return Layout(origin, together)
    pattern, key_of = dated
    calendar = Calendar(proposal.every, ZoneInfo(proposal.timezone), windows.start)
    try:
        own = {file: calendar.named(key) for file, key in key_of.items()}
    except WrongUseError:
        return Layout(origin, f"{together}: their dates are not the keys of {proposal.every} partitions")
    within = calendar.within(min(part.start for part in own.values()), max(part.end for part in own.values()))
    missing = {partition.key for partition in within} - set(key_of.values())
    if len(missing) > len(within) * MOST_MISSING:
        return Layout(origin, f"{together}: there is no file for {listed(missing)}")
    one_each = origin.read_with(types=_types(survey, proposal))
    if (outside := _outside(survey, windows.time.name, one_each, own)) is not None:
        return Layout(origin, f"{together}: {outside}")
    lacking = f", and fails for {listed(missing)} until there is a file" if missing else ""
    note = f"each {proposal.every} reads the file of its date, so that late and corrected files are seen{lacking}"
    return Layout(replace(one_each, path=pattern), note, past=None if windows.past is None else one_each)


def _dated(files: list[FilePath]) -> tuple[FilePath, dict[FilePath, str]] | None:
    """The pattern that the paths of all files follow, and the key in each path; None if there is no such pattern."""
    below = len(os.path.commonpath([file.parent for file in files]))
    for placeholder, (date, key_of) in _DATES.items():
        pattern = re.compile(rf"(?<![0-9]){date}(?![0-9])")
        dates = {file: list(pattern.finditer(str(file), below)) for file in files}
        if all(len(matches) == 1 for matches in dates.values()):
            patterns = {_pattern(file, matches[0], placeholder) for file, matches in dates.items()}
            if len(patterns) == 1:
                return patterns.pop(), {file: key_of(matches[0][0]) for file, matches in dates.items()}
    return None


def _pattern(file: FilePath, date: re.Match[str], placeholder: str) -> FilePath:
    """The path of a file with a placeholder instead of its date; a folder for each date may hold several files."""
    before, after = str(file)[: date.start()], str(file)[date.end() :]
    folders, slash, _ = after.rpartition("/")
    rest = f"{escape(folders)}/*{ending_of(file)}" if slash else escape(after)
    return type(file)(escape(before) + placeholder + rest)


def _types(survey: Survey, proposal: Proposal) -> dict[str, str]:
    """The types of the columns of CSV and JSON files that the values of one day need not tell."""
    if survey.origin.kind not in ("csv", "json"):
        return {}
    made_of = [survey.column(name) for name in proposal.time.made_of] if proposal.time else []
    used = [*proposal.key, proposal.time, *made_of, *proposal.features, proposal.label]
    stored = (column for column in used if column is not None and not column.made_of)
    return {column.name: column.dtype for column in stored if column.holds != "integer" or column.sql}


def _outside(survey: Survey, time: str, origin: Origin, own: Mapping[FilePath, Partition]) -> str | None:
    """The reason for which files cannot be read one by one: the first with rows of another partition, or that cannot be read alone."""
    for file, partition in own.items():
        try:
            bounds = survey.bounds_of_file(replace(origin, path=type(file)(escape(str(file)))), time)
        except SourceError as error:
            return f"{file.name} cannot be read alone ({error.message})"
        if bounds is not None and not partition.start <= bounds[0] <= bounds[1] < partition.end:
            return f"{file.name} has rows of other partitions"
    return None


_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORDS_OF_YAML = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
_NO_NAME = re.compile(r"\*?|\^.*\$|.*\{[{%#].*", re.DOTALL)  # Polars would read a pattern, Dagster a template
THIS = "this"  # alias of the table
ROW_HASH, ROW_COPY = "row_hash", "row_copy"  # name a row by what it holds
_ROWS = "rows"  # source name of a table whose own name is not valid
_NOTES = {  # notes on columns of the key that the table itself does not have
    FILE: "the file of the row, and",
    ROW_IN_FILE: "the place of the row in the file, which must not change",
}
# Lines of blocks that a pipeline lacks are empty, and left out.
_YAML = """\
# Proposed for {file}: every line is a guess. Read and edit it.
type: {type}
attributes:
  name: {name}
  description: {description}
  partitions: {partitions}
  sources:
{sources}
  features:
    sql: features.sql
    key: [{key}]   # unique {key_holds}
{time}
{columns}
    max_rejected: {{share: 1%, rows: 5}}   # if more rows of a partition are bad, it is not published
{labels}
  model:
    estimator: {estimator}
    params: {params}
    train: {{{train}}}
{allowed}
{predictions}
{monitoring}
"""


def files_of(
    name: str, proposal: Proposal, reading: Layout, root: Path | None = None, folder: Path = Path()
) -> dict[str, str]:
    """The text of each file of a pipeline, by file name; paths within a root are relative to the folder of the pipeline."""
    sources, rows, places = _read(proposal, reading)
    queries = dict[str, str]()
    if query := _query_of(reading, proposal):
        (source,) = sources
        queries = {f"{source}_rows.sql": query}
        sources = {source: reading.origin.read_by(*queries)}
    if root is not None:
        sources = {source: origin.relative_to(root, folder) for source, origin in sources.items()}
    earlier = _past([*sources][-1], proposal)
    files = {
        "defs.yaml": _yaml(name, proposal, sources, places, [*earlier]),
        "features.sql": _features(rows, places, proposal, earlier),
    }
    if proposal.label is not None:
        files["labels.sql"] = _labels(rows, places, proposal, proposal.label)
    return files | queries


def _query_of(reading: Layout, proposal: Proposal) -> str:
    """The query that reads the rows of a partition from a table of PostgreSQL; empty where a partition needs others too.

    SQLite has no times to compare with the bounds.
    """
    origin, time, windows = reading.origin, proposal.time, proposal.windows
    if origin.driver != "postgresql" or time is None or not proposal.key or (windows and windows.past):
        return ""
    if time.reading is None or time.reading.sql != "{}" or time.made_of:
        return ""
    needed = (*proposal.key, time, *proposal.features, *proposal.keep, *((proposal.label,) if proposal.label else ()))
    columns = dict.fromkeys(quoted(column.name) for column in needed if not column.made_of)
    table, at = ".".join(map(quoted, origin.options["table"].split("."))), quoted(time.name)
    return (
        "-- The rows of one partition, read in the database: by an index, if there is one on the time.\n"
        f"SELECT {', '.join(columns)}\nFROM {table}\nWHERE {at} >= $partition_start AND {at} < $partition_end\n"
    )


def _read(proposal: Proposal, reading: Layout) -> tuple[dict[str, Origin], str, tuple[str, ...]]:
    """The sources by name, the FROM clause that reads them, and the columns of the key that the table itself does not have."""
    origin = reading.origin
    source = _source_name(origin)
    table = _identifier(source)
    sources = {source: origin} | ({} if reading.past is None else {f"{source}_past": reading.past})
    if proposal.key or proposal.key_holds == BY_CONTENT:
        alias = f" AS {THIS}" if proposal.windows and proposal.windows.past else ""
        return sources, f"{table}{alias}", () if proposal.key else (ROW_HASH, ROW_COPY)
    if "number_rows" in origin.options:
        return sources, f"{table} AS {THIS}", (FILE, ROW_IN_FILE)
    return sources, f"(SELECT row_number() OVER () AS {ROW_IN_FILE}, * FROM {table}) AS {THIS}", (ROW_IN_FILE,)


def _yaml(
    name: str, proposal: Proposal, sources: Mapping[str, Origin], places: Sequence[str], earlier: Sequence[str]
) -> str:
    label, windows, every = proposal.label, proposal.windows, proposal.every
    delay = Duration() if windows is None else windows.delay
    if windows is None:
        today = _quoted(local_key(proposal.today, every))
        partitions = f"{{every: {every}, start: {today}, snapshot: true, timezone: {proposal.timezone}}}   # the whole table, as it is on the day"
        train: dict[str, object] = {"held_out": HELD_OUT}
    else:
        end = "" if windows.end is None else f", end: {_quoted(local_key(windows.end, every))}"
        note = "   # move `end` on as rows arrive, and remove it once they reach the present" if end else ""
        start = _quoted(local_key(windows.start, every))
        partitions = f"{{every: {every}, start: {start}{end}, timezone: {proposal.timezone}}}{note}"
        begins = windows.train_start and proposal.train_every and local_key(windows.train_start, proposal.train_every)
        train = {**({"start": begins} if begins else {}), "window": "all"}
    often = {} if proposal.train_every is None else {"every": proposal.train_every}
    train |= {} if proposal.max_rows is None else {"max_rows": proposal.max_rows}
    labels = ""
    if label is not None:
        positive = "" if proposal.positive is None else f", positive: {_scalar(proposal.positive)}"
        labels = f"  labels: {{sql: labels.sql, column: {_scalar(_name(label))}{positive}"
        note = "   # delay: time from the end of a partition until its labels are known"
        labels += "}" if windows is None else f", delay: {delay}}}{note}"
    nullable = [*(_name(column) for column in proposal.features if column.nulls), *earlier]
    columns = ["    columns:   # null in some rows", *(f"      {_scalar(own)}: {{nullable: true}}" for own in nullable)]
    known = f"   # from earlier labels, known when the partition starts as long as labels.delay is {delay}"
    trend = windows.part_names[DAY_NUMBER] if windows and DAY_NUMBER in windows.calendar else ""
    keep = ", ".join(_scalar(_name(column)) for column in proposal.keep)
    text = _YAML.format(
        file=shortened(next(iter(sources.values())).path.name),
        type=TYPE,
        name=name,
        description=_scalar(f"Prediction of {_name(label)}." if label else "Groups of similar rows."),
        partitions=partitions,
        sources="\n".join(f"    {source}: {_flow(origin.block)}" for source, origin in sources.items()),
        key=", ".join([*places, *(_scalar(_stored(column)) for column in proposal.key)]),
        key_holds=proposal.key_holds,
        time="" if proposal.time is None else f"    time: {_scalar(_stored(proposal.time))}",
        columns="\n".join(columns) if nullable else "",
        labels=labels,
        estimator=proposal.estimator,
        params=_flow(proposal.params),
        train=_flow({**often, **train})[1:-1] + (f", evaluate: {windows.evaluate}" if windows else ""),
        allowed=f"    allow_suspected_leaks: [{', '.join(map(_scalar, earlier))}]{known}" if earlier else "",
        predictions=f"  predictions: {{keep: [{keep}]}}" if keep else "",
        monitoring=f"  monitoring: {{drift: {{ignore: [{trend}]}}}}" if trend else "",
    )
    return re.sub(r"\n{2,}", "\n", text)


def _features(rows: str, places: Sequence[str], proposal: Proposal, earlier: Mapping[str, str]) -> str:
    windows = proposal.windows
    columns = _keys(proposal, places, "")
    if windows is not None:
        instant = instant_of(windows.time)
        if windows.time not in proposal.key:
            columns.append((_as(instant, windows.time, _stored(windows.time)), "the time"))
        columns += [(f"extract({part} FROM {instant}) AS {windows.part_names[part]}", "") for part in windows.calendar]
    columns += [(f"{sql} AS {_identifier(name)}", "") for name, sql in earlier.items()]
    columns += [(_as(_value(column), column, _name(column)), "") for column in proposal.features]
    notes: list[str] = []
    if windows is not None and windows.timeless:
        notes = [f"-- In no partition: {windows.without_time}."]
    if windows is not None and windows.repeated:
        notes += [f"-- {windows.repeated}."]
    if proposal.left_out:
        reasons = (f"--   {shortened(name)}: {reason}" for name, reason in proposal.left_out.items())
        notes += ["-- Left out:", *reasons]
    known = "when it is scored" if windows is not None else "when the table is read"
    comment = (
        f"One row per key, with what is known about it {known}. Remove what is known only later:\n"
        "-- it would make a model look better than it can be."
    )
    return _select(comment, columns, rows, _within(proposal), notes)


def _labels(rows: str, places: Sequence[str], proposal: Proposal, label: TableColumn) -> str:
    columns = _keys(proposal, places, f" ORDER BY {_value(label)}")
    columns.append((_as(_value(label), label, _name(label)), "the true outcome"))
    conditions = [*_within(proposal), f"{_value(label)} IS NOT NULL"]
    return _select("Key and true outcome of the rows whose outcome is known.", columns, rows, conditions)


def _select(
    comment: str, columns: list[tuple[str, str]], source: str, conditions: Sequence[str], notes: Sequence[str] = ()
) -> str:
    """A query that selects SQL expressions, each with a note or none."""
    commas = [f"    {sql}{',' if at < len(columns) else ''}" for at, (sql, _) in enumerate(columns, start=1)]
    listing = [f"{line}   -- {note}" if note else line for line, (_, note) in zip(commas, columns, strict=True)]
    where = [f"WHERE {' AND '.join(conditions)}"] if conditions else []
    return "\n".join([f"-- {comment}", "SELECT", *listing, f"FROM {source}", *where, *notes, ""])


def _keys(proposal: Proposal, places: Sequence[str], order: str) -> list[tuple[str, str]]:
    """The columns of the key, each with a note; `order` is that in which equal rows are numbered."""
    time = proposal.time
    if ROW_HASH in places:
        # A column of integers may be read as one of other numbers once later rows are.
        hashed = [column for column in (time, *proposal.features) if column is not None]
        names = [(instant_of(column) if column.made_of else _value(column), column.holds) for column in hashed]
        values = ", ".join(f"CAST({name} AS DOUBLE)" if holds == "integer" else name for name, holds in names)
        return [
            (f"md5(CAST(ROW({values}) AS VARCHAR)) AS {ROW_HASH}", "names a row by what is known about it, and"),
            (f"row_number() OVER (PARTITION BY {ROW_HASH}{order}) AS {ROW_COPY}", "tells equal rows apart"),
        ]
    own = [
        (_as(instant_of(column) if column == time else _value(column), column, _stored(column)), "the key")
        for column in proposal.key
    ]
    return [(f"{THIS}.{place}", _NOTES[place]) for place in places] + own


def _within(proposal: Proposal) -> list[str]:
    """The conditions for a row of the partition."""
    if proposal.time is None:
        return []
    at = instant_of(proposal.time)
    return [f"{at} >= $partition_start", f"{at} < $partition_end"]


def _past(source: str, proposal: Proposal) -> dict[str, str]:
    """SQL for the features of a series by name: what earlier rows of the same entity said, known when the partition starts."""
    windows, label = proposal.windows, proposal.label
    if windows is None or windows.past is None or label is None:
        return {}
    past, at = windows.past, instant_of(windows.time, "past.")
    value = _value(label, "past.")
    value = f"CAST({value} AS DOUBLE)" if label.holds == "boolean" else value
    same = [f"past.{_identifier(column.name)} = {THIS}.{_identifier(column.name)}" for column in past.entity]
    end = f"$partition_start - INTERVAL '{windows.delay}'" if windows.delay.nominal else "$partition_start"
    name, row_at = _name(label), instant_of(windows.time, f"{THIS}.")

    def mean(condition: str) -> str:
        where = " AND ".join([*same, f"{at} < {end}", condition])
        return f"(SELECT avg({value}) FROM {_identifier(source)} AS past WHERE {where})"

    def within(length: Duration) -> str:
        return f"{at} >= {end} - INTERVAL '{length}'"

    made = {f"{name}_mean_{length}": mean(within(length)) for length in past.means}
    if past.day is not None:
        same_hour = f"extract(hour FROM {at}) = extract(hour FROM {row_at})"
        of_hour = mean(f"{within(past.day)} AND {same_hour}")
        made[f"{name}_of_hour_{past.day}"] = f"{of_hour}\n        - {mean(within(past.day))}"
    made |= {f"{name}_{lag}_before": mean(f"{at} = {row_at} - INTERVAL '{lag}'") for lag in past.lags}
    named = {own.replace(" ", "_"): sql for own, sql in made.items()}
    taken = {_name(column).lower() for column in (*proposal.features, *proposal.key)}
    return {own: sql for own, sql in named.items() if own.lower() not in taken}


def instant_of(column: TableColumn, qualifier: str = "") -> str:
    """SQL for the time of a row of the table, as `column` tells it."""
    value = _value(column, qualifier)
    parts = (f"{qualifier}{_identifier(name)}" for name in column.made_of)
    return value if column.reading is None else column.reading.of(value, *parts)


def _value(column: TableColumn, qualifier: str = "") -> str:
    """SQL for a column, cast to a type that features can have."""
    name = f"{qualifier}{_identifier(column.name)}"
    if column.sql:
        return column.sql.replace("{}", name)
    if column.dtype == "UUID":
        return f"CAST({name} AS VARCHAR)"
    if column.dtype in ("HUGEINT", "UHUGEINT"):
        return f"CAST({name} AS DOUBLE)"
    return name


def _as(sql: str, column: TableColumn, name: str) -> str:
    return sql if sql == _identifier(column.name) and name == column.name else f"{sql} AS {_identifier(name)}"


def _name(column: TableColumn) -> str:
    """The name of a column in the pipeline: its own name if that is valid."""
    return f"column_{column.position}" if _NO_NAME.fullmatch(column.name) else column.name


def _stored(column: TableColumn) -> str:
    """The name of a key or time column, which must differ from the columns that scoring adds."""
    name = _name(column)
    return f"{name}_given" if name.lower() in TAKEN_NAMES else name


def _identifier(name: str) -> str:
    """A name in SQL, quoted only if necessary; DuckDB keeps capitals but compares without case."""
    return name if _PLAIN.fullmatch(name) and name.lower() not in _keywords() else quoted(name)


@cache
def _keywords() -> frozenset[str]:
    query = "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category <> 'unreserved'"
    with connect() as con:
        return frozenset(word for (word,) in con.execute(query).fetchall())


def _flow(block: Mapping[str, object]) -> str:
    """A block as YAML on one line."""
    parts = (
        f"{_scalar(key)}: {_flow(value) if isinstance(value, Mapping) else _scalar(value)}"
        for key, value in block.items()
    )
    return f"{{{', '.join(parts)}}}"


def _scalar(value: object) -> str:
    """A value as YAML on one line, with a text quoted only if necessary."""
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) and value.lower() not in _WORDS_OF_YAML else _quoted(value)
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(text: str) -> str:
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=float("inf")).strip()


def _source_name(origin: Origin) -> str:
    """The name of the source in SQL: that of the table, the file or the folder, if it is valid."""
    file, folders = origin.path.name, [path.name for path in origin.path.parents if not varies(path.name)]
    for placeholder in PLACEHOLDERS:
        file = file.replace(placeholder, "")
    names = [origin.options["table"].rpartition(".")[2] if "table" in origin.options else file.partition(".")[0]]
    names += folders[:1] if "*" in file or varies(str(origin.path)) else []
    for own in names:
        name = name_of(own.strip("0123456789"))
        if name and name not in {*ASSETS, "partition", *_keywords()}:
            return name
    return _ROWS
