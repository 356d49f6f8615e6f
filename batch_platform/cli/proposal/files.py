"""Write a proposed pipeline as YAML and SQL, to read, edit and keep.

The names come from the user's table: they are quoted identifiers in SQL, quoted scalars in YAML, and one line in comments.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import yaml

from batch_platform.cli.proposal.choices import (
    BY_CONTENT,
    HELD_OUT,
    PART_NAMES,
    TAKEN_NAMES,
    WITHIN_FILE,
    Proposal,
    local_key,
)
from batch_platform.cli.proposal.origin import Origin
from batch_platform.cli.proposal.pair import Pair
from batch_platform.cli.proposal.survey import PART, Span, TableColumn
from batch_platform.declaration.calendar import Duration
from batch_platform.declaration.errors import shortened
from batch_platform.declaration.inputs import FILE, PLACEHOLDERS, ROW_IN_FILE, varies
from batch_platform.declaration.notation import name_of
from batch_platform.declaration.spec import ASSETS
from batch_platform.declaration.yaml_file import TYPE
from batch_platform.warehouse.sql import connect, quoted

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORDS_OF_YAML = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
_NO_NAME = re.compile(r"\*?|\^.*\$|.*\{[{%#].*", re.DOTALL)  # Polars would read a pattern, Dagster a template
THIS = "this"  # alias of the table
ROW_HASH, ROW_COPY = "row_hash", "row_copy"  # name a row by what it holds
_ROWS = "rows"  # source name of a table whose own name is not valid


@dataclass(frozen=True)
class _Read:
    """How the SQL reads the table."""

    rows: str  # what stands behind FROM
    places: tuple[str, ...]  # columns of the key that the table itself does not have


def files_of(
    name: str, proposal: Proposal, origin: Origin, past: Origin | None = None, pair: Pair | None = None
) -> dict[str, str]:
    """The text of each file of a pipeline, by file name; paths are relative to the folder of the pipeline.

    Earlier rows are read from `past`, if a partition's own file does not hold them, and rows to score from a `pair`.
    """
    source = _source_name(origin)
    sources = {source: origin} if past is None else {source: origin, f"{source}_past": past}
    earlier = _past([*sources][-1], proposal)
    if pair is None:
        read = _Read(_from(source, proposal, origin), _places(proposal, origin))
    else:
        second = _source_name(pair.score)
        second = f"{second}_to_score" if second == source else second
        sources = {source: origin, second: pair.score}
        rows = pair.rows(_identifier(source), _identifier(second), numbered=not proposal.key)
        places = (PART, ROW_IN_FILE) if not proposal.key else (PART,) if proposal.key_holds == WITHIN_FILE else ()
        read = _Read(f"(\n    {rows}\n) AS {THIS}", places)
    files = {
        "defs.yaml": _yaml(name, proposal, sources, read, [feature for feature, _ in earlier]),
        "features.sql": _features(read, proposal, earlier),
    }
    if proposal.label is not None:
        files["labels.sql"] = _labels(read, proposal, proposal.label)
    return files


def _yaml(name: str, proposal: Proposal, sources: Mapping[str, Origin], read: _Read, earlier: Sequence[str]) -> str:
    what = "Groups of similar rows" if proposal.label is None else f"Prediction of {_name(proposal.label)}"
    key = ", ".join([*read.places, *(_scalar(_stored(column)) for column in proposal.key)])
    nullable = [*(_name(column) for column in proposal.features if column.nulls), *earlier]
    labels: list[str] = []
    if proposal.label is not None:
        delay = "" if proposal.windows is None else f", delay: {proposal.windows.delay}"
        positive = "" if proposal.positive is None else f", positive: {_scalar(proposal.positive)}"
        label = f"  labels: {{sql: labels.sql, column: {_scalar(_name(proposal.label))}{positive}{delay}}}"
        note = "   # delay: time from the end of a partition until its labels are known" if delay else ""
        labels.append(f"{label}{note}")
    delay = Duration() if proposal.windows is None else proposal.windows.delay
    known = f"   # from earlier labels, known when the partition starts as long as labels.delay is {delay}"
    allowed = f"    allow_suspected_leaks: [{', '.join(map(_scalar, earlier))}]{known}"
    params = ", ".join(f"{key}: {_scalar(value)}" for key, value in proposal.params.items())
    time = [] if proposal.windows is None else [f"    time: {_scalar(_stored(proposal.windows.time))}"]
    keep = ", ".join(_scalar(_name(column)) for column in proposal.keep)
    return "\n".join(
        [
            f"# Proposed for {shortened(next(iter(sources.values())).path.name)}: every line is a guess. Read and edit it.",
            f"type: {TYPE}",
            "attributes:",
            f"  name: {name}",
            f"  description: {_scalar(f'{what}.')}",
            f"  partitions: {_partitions(proposal)}",
            "  sources:",
            *(f"    {source}: {_flow(origin.block)}" for source, origin in sources.items()),
            "  features:",
            "    sql: features.sql",
            f"    key: [{key}]   # unique {proposal.key_holds}",
            *time,
            *(["    columns:   # null in some rows"] if nullable else []),
            *(f"      {_scalar(column)}: {{nullable: true}}" for column in nullable),
            "    max_rejected: {share: 1%, rows: 5}   # of a partition; if more rows are rejected than either allows, it is not published",
            *labels,
            "  model:",
            f"    estimator: {proposal.estimator}",
            f"    params: {{{params}}}",
            f"    train: {{{_training(proposal)}}}",
            *([allowed] if earlier else []),
            *([f"  predictions: {{keep: [{keep}]}}"] if keep else []),
            "",
        ]
    )


def _partitions(proposal: Proposal) -> str:
    windows, every = proposal.windows, proposal.every
    if windows is None:
        today = _quoted(local_key(proposal.today, every))
        block = f"{{every: {every}, start: {today}, snapshot: true, timezone: {proposal.timezone}}}"
        return f"{block}   # the whole table, as it is on the day"
    start = _quoted(local_key(windows.start, every))
    end = "" if windows.end is None else f", end: {_quoted(local_key(windows.end, every))}"
    note = "   # remove `end` once new rows arrive" if end else ""
    return f"{{every: {every}, start: {start}{end}, timezone: {proposal.timezone}}}{note}"


def _training(proposal: Proposal) -> str:
    windows, every = proposal.windows, proposal.train_every
    often = {} if every is None else {"every": every}
    if windows is None:
        return _flow({**often, "held_out": HELD_OUT})[1:-1]
    begins = {} if windows.train_start is None or every is None else {"start": local_key(windows.train_start, every)}
    return _flow({**often, **begins, "window": "all"})[1:-1] + f", evaluate: {windows.evaluate}"


def _features(read: _Read, proposal: Proposal, earlier: Sequence[tuple[str, str]]) -> str:
    windows = proposal.windows
    columns = _keys(proposal, read.places, "")
    if windows is not None:
        if windows.time not in proposal.key:
            columns.append((_as(_instant(windows.time), windows.time, _stored(windows.time)), "the time"))
        columns += [
            (f"extract({part} FROM {_instant(windows.time)}) AS {_part_name(proposal, part)}", "")
            for part in windows.calendar
        ]
    columns += [(f"{sql} AS {_identifier(name)}", "") for name, sql in earlier]
    columns += [(_as(_value(column), column, _name(column)), "") for column in proposal.features]
    left_out = [f"--   {shortened(name)}: {reason}" for name, reason in proposal.left_out.items()]
    lost = (
        []
        if windows is None or not windows.timeless
        else [
            f"-- {windows.timeless:,} rows belong to no partition: their {shortened(windows.time.name)} is not a time{_far_off(windows.span)}."
        ]
    )
    known = "when its partition starts" if windows is not None else "when the table is read"
    return _select(
        f"One row per key, with what is known about it {known}. Remove what is known only later:\n"
        "-- it would make a model look better than it can be.",
        columns,
        read.rows,
        _within(proposal),
        *lost,
        *(["-- Left out:", *left_out] if left_out else []),
    )


def _far_off(span: Span) -> str:
    return f", or lies far from all others, such as {span.far_off[0]:%Y-%m-%d}" if span.far_off else ""


def _labels(read: _Read, proposal: Proposal, label: TableColumn) -> str:
    columns = _keys(proposal, read.places, f" ORDER BY {_value(label)}")
    columns.append((_as(_value(label), label, _name(label)), "the true outcome"))
    where = " AND ".join(filter(None, [_within(proposal), f"{_identifier(label.name)} IS NOT NULL"]))
    return _select("Key and true outcome of the rows whose outcome is known.", columns, read.rows, where)


def _select(comment: str, columns: list[tuple[str, str]], source: str, where: str, *after: str) -> str:
    commas = [f"    {sql}{',' if at < len(columns) else ''}" for at, (sql, _) in enumerate(columns, start=1)]
    listing = [f"{line}   -- {note}" if note else line for line, (_, note) in zip(commas, columns, strict=True)]
    condition = [f"WHERE {where}"] if where else []
    return "\n".join([f"-- {comment}", "SELECT", *listing, f"FROM {source}", *condition, *after, ""])


def _places(proposal: Proposal, origin: Origin) -> tuple[str, ...]:
    """The columns that name a row which nothing else names."""
    if proposal.key:
        return ()
    if proposal.key_holds == BY_CONTENT:
        return (ROW_HASH, ROW_COPY)
    return (FILE, ROW_IN_FILE) if origin.number_rows else (ROW_IN_FILE,)


def _from(source: str, proposal: Proposal, origin: Origin) -> str:
    """The source as the FROM clause names it, with the place of each row in the file if there is no other key."""
    if proposal.key or proposal.key_holds == BY_CONTENT:
        return _identifier(source) + (f" AS {THIS}" if proposal.windows and proposal.windows.past else "")
    if origin.number_rows:
        return f"{_identifier(source)} AS {THIS}"
    return f"(SELECT row_number() OVER () AS {ROW_IN_FILE}, * FROM {_identifier(source)}) AS {THIS}"


def _keys(proposal: Proposal, places: Sequence[str], order: str) -> list[tuple[str, str]]:
    """The columns of the key, each with a note; `order` is that in which equal rows are numbered."""
    notes = {
        PART: "the file of the row: the one to learn from, or the one to score",
        FILE: "the file of the row, and",
        ROW_IN_FILE: "the place of the row in the file, which must not change",
    }
    time = None if proposal.windows is None else proposal.windows.time
    if ROW_HASH in places:
        # A column of integers may be read as one of other numbers once later rows are.
        held = [column for column in (time, *proposal.features) if column is not None]
        names = [(_identifier(column.name), column.holds) for column in held]
        values = ", ".join(f"CAST({name} AS DOUBLE)" if holds == "integer" else name for name, holds in names)
        return [
            (f"md5(CAST(ROW({values}) AS VARCHAR)) AS {ROW_HASH}", "names a row by what is known about it, and"),
            (f"row_number() OVER (PARTITION BY {ROW_HASH}{order}) AS {ROW_COPY}", "tells equal rows apart"),
        ]
    named = [(f"{THIS}.{place}", notes[place]) for place in places]
    return named + [
        (_as(_instant(column) if column == time else _value(column), column, _stored(column)), "the key")
        for column in proposal.key
    ]


def _within(proposal: Proposal) -> str:
    if proposal.windows is None:
        return ""
    at = _instant(proposal.windows.time)
    return f"{at} >= $partition_start AND {at} < $partition_end"


def _past(source: str, proposal: Proposal) -> list[tuple[str, str]]:
    """The features of a series, name and SQL: what earlier rows of the same entity said, known when the partition starts."""
    windows, label = proposal.windows, proposal.label
    if windows is None or windows.past is None or label is None:
        return []
    past, at = windows.past, _instant(windows.time, "past.")
    value = _value(label, "past.")
    value = f"CAST({value} AS DOUBLE)" if label.holds == "boolean" else value
    same = [f"past.{_identifier(column.name)} = {THIS}.{_identifier(column.name)}" for column in past.entity]
    end = f"$partition_start - INTERVAL '{windows.delay}'" if windows.delay.nominal else "$partition_start"
    known = f"{at} < {end}"
    name, row_at = _name(label), _instant(windows.time, f"{THIS}.")

    def mean(condition: str) -> str:
        where = " AND ".join([*same, known, condition])
        return f"(SELECT avg({value}) FROM {_identifier(source)} AS past WHERE {where})"

    def within(length: Duration) -> str:
        return f"{at} >= {end} - INTERVAL '{length}'"

    made = {f"{name}_mean_{length}": mean(within(length)) for length in past.means}
    if past.day is not None:
        same_hour = f"extract(hour FROM {at}) = extract(hour FROM {row_at})"
        of_hour = mean(f"{within(past.day)} AND {same_hour}")
        made[f"{name}_of_hour_{past.day}"] = f"{of_hour}\n        - {mean(within(past.day))}"
    made |= {f"{name}_{lag}_before": mean(f"{at} = {row_at} - INTERVAL '{lag}'") for lag in past.lags}
    taken = {_name(column).lower() for column in (*proposal.features, *proposal.key)}
    named = ((name.replace(" ", "_"), sql) for name, sql in made.items())
    return [(name, sql) for name, sql in named if name.lower() not in taken]


def _part_name(proposal: Proposal, part: str) -> str:
    """The name of a part of the time as a feature, which no other column has."""
    name = PART_NAMES[part]
    taken = {_name(column).lower() for column in (*proposal.features, *proposal.key)}
    taken |= set() if proposal.windows is None else {_stored(proposal.windows.time).lower()}
    label = "" if proposal.label is None else _name(proposal.label).lower()
    return f"{name}_of_time" if name in {*taken, label, *TAKEN_NAMES} else name


def _instant(column: TableColumn, qualifier: str = "") -> str:
    name = f"{qualifier}{_identifier(column.name)}"
    return name if column.reading is None else column.reading.of(name)


def _value(column: TableColumn, qualifier: str = "") -> str:
    """SQL for a column, cast to a type that features can have."""
    name = f"{qualifier}{_identifier(column.name)}"
    if column.groups_digits:
        return f"CAST(replace(replace({name}, '.', ''), ',', '.') AS DOUBLE)"
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
    names = [origin.table.rpartition(".")[2]] if origin.table else [file.partition(".")[0]]
    names += folders[:1] if "*" in file or varies(str(origin.path)) else []
    for own in names:
        name = name_of(own.strip("0123456789"))
        if name and name not in {*ASSETS, "partition", *_keywords()}:
            return name
    return _ROWS
