"""Say what is proposed, and why: as a report for programs, and in sentences."""

from pathlib import Path
from typing import Any

from batch_platform.declaration.errors import first_few, listed, shortened
from batch_platform.proposal.choices import BY_CONTENT, Proposal, Windows, local_key
from batch_platform.proposal.files import Layout
from batch_platform.proposal.survey import Survey, TableColumn


def report_of(name: str, folder: Path, survey: Survey, proposal: Proposal, reading: Layout) -> dict[str, Any]:
    """The proposal and its reasons, as plain values."""
    windows = proposal.windows
    return {
        "pipeline": name,
        "folder": str(folder),
        "rows": survey.rows,
        "key": [column.name for column in proposal.key],
        "key_unique": proposal.key_holds,
        "snapshot": windows is None,
        "time": windows and windows.time.name,
        "time_read": _time_read(windows) if windows else "",
        "rows_without_time": windows.timeless if windows else 0,
        "first": windows and windows.span.first,
        "last": windows and windows.span.last,
        "every": proposal.every,
        "end": windows and windows.end and local_key(windows.end, proposal.every),
        "partitions": windows.span.filled[proposal.every] if windows else 1,
        "label": proposal.label and proposal.label.name,
        "positive": proposal.positive,
        "label_delay": str(windows.delay) if windows else "0 days",
        "label_evidence": list(proposal.evidence),
        "estimator": proposal.estimator,
        "train_every": proposal.train_every,
        "features": [column.name for column in proposal.features],
        "calendar_features": [windows.part_names[part] for part in windows.calendar] if windows else [],
        "history_features": windows is not None and windows.past is not None,
        "left_out": proposal.left_out,
        "no_value": {column.name: column.missing for column in _with_words(proposal)},
        "others": proposal.others,
        "source": {**reading.origin.block},
        "source_read": reading.note,
    }


def sentences(proposal: Proposal, reading: Layout) -> dict[str, Any]:
    """The proposal and its reasons, in a sentence on each part."""
    windows, names = proposal.windows, [column.name for column in proposal.features]
    others = {role: f"; also possible: {listed(names)}" if names else "" for role, names in proposal.others.items()}
    place = (
        "a row's file and its place there"
        if "number_rows" in reading.origin.options
        else "the place of a row in its file"
    )
    unnamed = "what a row holds" if proposal.key_holds == BY_CONTENT else place
    key = ", ".join(column.name for column in proposal.key) or unnamed
    repeated = windows and windows.repeated
    repeated = f"; {repeated}: remove the extra rows and repeat the command" if repeated else ""
    features = [f"{len(names)}: {first_few(names)}"] if names else []
    if windows and windows.calendar:
        features.append(f"from the time: {', '.join(windows.part_names[part] for part in windows.calendar)}")
    if windows and windows.past:
        features.append("earlier values of the label")
    words = {
        shortened(column.name): f"no value where it is {' or '.join(map(repr, column.missing))}"
        for column in _with_words(proposal)
    }
    lines = {
        "source": reading.note,
        "key": f"{key}, unique {proposal.key_holds}{others['key']}{repeated}",
        "time": _time(windows) + others["time"]
        if windows
        else f"none: every day the whole table is scored as it is then{others['time']}",
        "partitions": _partitions(proposal, windows) if windows else "snapshots of the whole table, from today on",
        "label": _label(proposal) + others["label"] if proposal.label else "none: similar rows are grouped",
        "model": f"{proposal.estimator}, trained {f'once a {proposal.train_every}' if proposal.train_every else 'once'}",
        "learns from": _learns_from(proposal),
        "features": "; ".join(features),
        "read as": words,
        "left out": proposal.left_out or "nothing",
    }
    return {part: text for part, text in lines.items() if text}


def _with_words(proposal: Proposal) -> list[TableColumn]:
    """The columns in which some values, such as NA, stand for none."""
    used = dict.fromkeys([*proposal.key, proposal.time, *proposal.features, proposal.label])
    return [column for column in used if column is not None and column.missing]


def _time_read(windows: Windows) -> str:
    return windows.time.reading.note if windows.time.reading else ""


def _time(windows: Windows) -> str:
    read = f" ({_time_read(windows)})" if _time_read(windows) else ""
    timeless = f"; in no partition: {windows.without_time}" if windows.timeless else ""
    return f"{windows.time.name}{read}, {windows.span.first:%Y-%m-%d %H:%M} to {windows.span.last:%Y-%m-%d %H:%M} UTC{timeless}"


def _partitions(proposal: Proposal, windows: Windows) -> str:
    ends = (
        f"; until {local_key(windows.end, proposal.every)}: move `end` on as rows arrive, and remove it once they reach the present"
        if windows.end
        else ""
    )
    zone = proposal.timezone + (", unless --timezone names another zone" if proposal.timezone == "UTC" else "")
    return f"{proposal.every} in {zone}, of which {windows.span.filled[proposal.every]:,} hold rows{ends}"


def _label(proposal: Proposal) -> str:
    label, windows = proposal.label, proposal.windows
    scored = f", score is for {proposal.positive!r}" if proposal.positive else ""
    because = f" ({', '.join(proposal.evidence)})" if proposal.evidence else ""
    late = windows.delay if windows is not None and windows.delay.nominal else None
    known = f"; known {late} later, as the newest {late} have none (labels.delay)" if late else ""
    return f"{label.name if label else ''}{scored}{because}{known}"


def _learns_from(proposal: Proposal) -> str:
    if proposal.windows is not None:
        return "all rows before the period that it serves"
    if proposal.label is None:
        return "all its rows; a first fit leaves out a random fifth of them, on which it is judged"
    return "all its rows with a label; a first fit leaves out a random fifth of them, on which it is judged; expect somewhat worse results in the future"
