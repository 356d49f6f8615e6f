"""Lay out how the files of a table are read: each partition its own, where they are named after the partitions whose rows they hold."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from glob import escape
from zoneinfo import ZoneInfo

from batch_platform.declaration.calendar import Calendar, Partition
from batch_platform.declaration.errors import SourceError, WrongUseError, listed
from batch_platform.proposal.choices import Proposal
from batch_platform.proposal.origin import Origin, ending_of
from batch_platform.proposal.survey import Survey
from batch_platform.sources.files import files_of
from batch_platform.sources.objects import FilePath

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
    chosen = _of_files(survey, proposal)
    return replace(chosen, note="; ".join(filter(None, [survey.origin.notation, chosen.note])))


def _of_files(survey: Survey, proposal: Proposal) -> Layout:
    origin, windows = survey.origin, proposal.windows
    if not proposal.key and windows is None and not origin.is_one_file:
        origin = origin.read_with(number_rows=True)
    files = files_of(origin.as_table("rows")) if origin.kind not in ("duckdb", "delta", "sql") else []
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
