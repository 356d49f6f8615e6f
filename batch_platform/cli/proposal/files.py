"""Write a proposed pipeline as YAML and SQL, to read, edit and keep.

The names come from the user's table: they are quoted identifiers in SQL, quoted scalars in YAML, and one line in comments.
"""

import re
from collections.abc import Mapping
from functools import cache

import duckdb
import yaml

from batch_platform.cli.proposal.choices import ESTIMATORS, PARAMS, Proposal
from batch_platform.cli.proposal.origin import Origin
from batch_platform.cli.proposal.survey import TableColumn
from batch_platform.declaration.calendar import KEY_FORMATS
from batch_platform.declaration.errors import shortened
from batch_platform.declaration.inputs import PLACEHOLDERS, varies
from batch_platform.declaration.notation import name_of
from batch_platform.declaration.spec import ADDED_COLUMNS, ASSETS
from batch_platform.warehouse.sql import quoted

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORDS_OF_YAML = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
_NO_NAME = re.compile(r"\*?|\^.*\$|.*\{[{%#].*", re.DOTALL)  # Polars would read a pattern, Dagster a template
_ROWS = "rows"  # source name of a table whose own name is not valid


def files_of(name: str, proposal: Proposal, origin: Origin) -> dict[str, str]:
    """The text of each file of a pipeline, by file name; `origin` is relative to the folder of the pipeline."""
    source = _source_name(origin)
    files = {"defs.yaml": _yaml(name, proposal, origin, source), "features.sql": _features(source, proposal)}
    if proposal.label is not None:
        files["labels.sql"] = _labels(source, proposal, proposal.label)
    return files


def _yaml(name: str, proposal: Proposal, origin: Origin, source: str) -> str:
    key_format, train_every = KEY_FORMATS[proposal.every], proposal.train_every
    start, end = (time.strftime(key_format) for time in (proposal.start, proposal.end))
    windows = f"every: {proposal.every}, start: {_quoted(start)}, end: {_quoted(end)}, timezone: {proposal.timezone}"
    what = "Groups of similar rows" if proposal.label is None else f"Prediction of {_name(proposal.label)}"
    key = ", ".join(_scalar(_stored(column)) for column in proposal.key)
    nullable = [f"      {_scalar(_name(column))}: {{nullable: true}}" for column in proposal.features if column.nulls]
    often = "" if train_every is None else f"every: {train_every}, "
    labels: list[str] = []
    if proposal.label is not None:
        label = f"  labels: {{sql: labels.sql, column: {_scalar(_name(proposal.label))}, delay: 0 days}}"
        labels.append(f"{label}   # delay: time from the end of a partition until its labels are known")
    params = ", ".join(f"{key}: {_scalar(value)}" for key, value in PARAMS[proposal.target].items())
    return "\n".join(
        [
            f"# Proposed for {shortened(origin.path.name)}: every line is a guess. Read and edit it.",
            "type: batch_platform.components.BatchInference",
            "attributes:",
            f"  name: {name}",
            f"  description: {_scalar(f'{what}.')}",
            f"  partitions: {{{windows}}}   # remove `end` once new rows arrive",
            "  sources:",
            f"    {source}: {_flow(origin.block)}",
            "  features:",
            "    sql: features.sql",
            f"    key: [{key}]   # unique {proposal.key_holds}",
            f"    time: {_scalar(_stored(proposal.time))}",
            *(["    columns:   # null in some rows"] if nullable else []),
            *nullable,
            "    max_rejected: {share: 1%, rows: 5}   # of a partition; if more rows are rejected than both, it is not published",
            *labels,
            "  model:",
            f"    estimator: {ESTIMATORS[proposal.target]}",
            f"    params: {{{params}}}",
            f"    train: {{{often}window: all, evaluate: {proposal.evaluate}}}",
            "",
        ]
    )


def _features(source: str, proposal: Proposal) -> str:
    time = _as(_instant(proposal.time), proposal.time, _stored(proposal.time))
    columns = [*_keys(proposal), (time, "the time")]
    columns += [(_as(_value(column), column, _name(column)), "") for column in proposal.features]
    left_out = [f"--   {shortened(name)}: {reason}" for name, reason in proposal.left_out.items()]
    lost = f"-- {proposal.timeless:,} rows belong to no partition: their {shortened(proposal.time.name)} is not a time."
    return _select(
        "One row per key, with what is known about it when its partition starts. Remove what is known only later:\n"
        "-- it would make a model look better than it can be.",
        columns,
        source,
        _within(proposal),
        *([lost] if proposal.timeless else []),
        *(["-- Left out:", *left_out] if left_out else []),
    )


def _labels(source: str, proposal: Proposal, label: TableColumn) -> str:
    columns = [*_keys(proposal), (_as(_value(label), label, _name(label)), "the true outcome")]
    where = f"{_within(proposal)} AND {_identifier(label.name)} IS NOT NULL"
    return _select("Key and true outcome of the rows whose outcome is known.", columns, source, where)


def _select(comment: str, columns: list[tuple[str, str]], source: str, where: str, *after: str) -> str:
    commas = [f"    {sql}{',' if at < len(columns) else ''}" for at, (sql, _) in enumerate(columns, start=1)]
    listing = [f"{line}   -- {note}" if note else line for line, (_, note) in zip(commas, columns, strict=True)]
    return "\n".join([f"-- {comment}", "SELECT", *listing, f"FROM {_identifier(source)}", f"WHERE {where}", *after, ""])


def _keys(proposal: Proposal) -> list[tuple[str, str]]:
    return [(_as(_value(column), column, _stored(column)), "the key") for column in proposal.key]


def _within(proposal: Proposal) -> str:
    at = _instant(proposal.time)
    return f"{at} >= $partition_start AND {at} < $partition_end"


def _instant(column: TableColumn) -> str:
    return _identifier(column.name) if column.reading is None else column.reading.of(_identifier(column.name))


def _value(column: TableColumn) -> str:
    """SQL for a column, cast to a type that features can have."""
    if column.groups_digits:
        return f"CAST(replace(replace({_identifier(column.name)}, '.', ''), ',', '.') AS DOUBLE)"
    if column.dtype == "UUID":
        return f"CAST({_identifier(column.name)} AS VARCHAR)"
    if column.dtype in ("HUGEINT", "UHUGEINT"):
        return f"CAST({_identifier(column.name)} AS DOUBLE)"
    return _identifier(column.name)


def _as(sql: str, column: TableColumn, name: str) -> str:
    return sql if sql == _identifier(column.name) and name == column.name else f"{sql} AS {_identifier(name)}"


def _name(column: TableColumn) -> str:
    """The name of a column in the pipeline: its own name if that is valid."""
    return f"column_{column.position}" if _NO_NAME.fullmatch(column.name) else column.name


def _stored(column: TableColumn) -> str:
    """The name of a key or time column, which must differ from the columns that scoring adds."""
    name = _name(column)
    return f"{name}_given" if name.lower() in (*ADDED_COLUMNS, "challenger") else name


def _identifier(name: str) -> str:
    """A name in SQL, quoted only if necessary; DuckDB keeps capitals but compares without case."""
    return name if _PLAIN.fullmatch(name) and name.lower() not in _keywords() else quoted(name)


@cache
def _keywords() -> frozenset[str]:
    query = "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category <> 'unreserved'"
    with duckdb.connect(":memory:") as con:
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
