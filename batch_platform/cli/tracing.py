"""The command `trace`: from a score back to the rows of its sources, and from a source forward to predictions."""

from collections.abc import Mapping
from dataclasses import asdict
from itertools import groupby

from batch_platform.cli import terminal
from batch_platform.components.wiring import Wiring
from batch_platform.pipeline.trace import Dependents, TracedSource, dependents, trace, with_source_rows


def show_trace(wiring: Wiring, key: Mapping[str, str], *, as_json: bool) -> None:
    """What produced the rows of a key, down to the sources.

    Raises:
        WrongUseError: A name is no key column.
        DataError: No row has the key.
        WarehouseError: Nothing is published, or the published copy cannot be read.
    """
    pipeline = wiring.pipeline()
    found = with_source_rows(pipeline.builder, trace(wiring.spec, pipeline.home, key))
    if as_json:
        terminal.show_json(found)
        return
    for one in found:
        fields = asdict(one)
        del fields["sources"]
        terminal.show_fields(fields)
        for source in one.sources:
            _show_source(source)


def show_dependents(wiring: Wiring, source: str, partition_key: str | None, *, as_json: bool) -> None:
    """The predictions that depend on a source, or on a partition of it.

    Raises:
        WrongUseError: There is no such source or partition.
        WarehouseError: Nothing is published, or the published copy cannot be read.
    """
    pipeline = wiring.pipeline()
    found = dependents(pipeline.builder, pipeline.home, source, partition_key)
    if as_json:
        terminal.show_json(found)
        return
    _show_dependents(found)


def _show_source(source: TracedSource) -> None:
    terminal.say(f"source {source.name} ({source.kind}):")
    terminal.say(f"  version: {source.version or '-'}{'' if source.unchanged else ', not as it is now'}")
    terminal.say(f"  columns read: {'not known' if source.columns is None else ', '.join(source.columns) or 'none'}")
    if source.note:
        terminal.say(f"  {source.name} {source.note}")
    if source.rows_of_key is not None:
        terminal.say(f"  rows of this key: {source.rows_of_key:,}")
    for row in source.rows:
        terminal.show_fields({"row": row}, indent=2)


def _show_dependents(found: Dependents) -> None:
    of = f"partition {found.partition} of {found.source}" if found.partition else found.source
    terminal.say(f"{found.pipeline}: {len(found.partitions):,} partitions, {found.rows_scored:,} rows, depend on {of}")
    terminal.say(f"  {found.note}")
    for version, count in found.versions.items():
        terminal.say(f"  version {version}: features of {count:,} partitions")
    if found.models:
        terminal.say(f"  models trained on it: {', '.join(found.models)}")
    for (through, model), members in groupby(found.partitions, key=lambda one: (one.through, one.model_version)):
        span = [one.partition for one in members]
        named = span[0] if len(span) == 1 else f"{span[0]} to {span[-1]} ({len(span):,})"
        terminal.say(f"  {named}: through its {' and its '.join(through)}, scored by {model}")
