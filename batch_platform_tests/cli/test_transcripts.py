"""The transcripts of the README and the guide are what the commands print, but for numbers, dates and what models come out as."""

import re
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import groupby

import pytest

from batch_platform.cli import new, run
from batch_platform.components import wiring
from batch_platform_tests.harness.checkout import blocks
from batch_platform_tests.harness.stories import STORIES

TRANSCRIPTS = blocks("console")
FOLDER = "~/shop"
NOON = datetime(
    2026, 11, 26, 12, tzinfo=UTC
)  # a Thursday: on the day on which a model is due, a missing file costs that too


class Noon(datetime):
    """The clock of the commands, which stands still."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        return NOON.astimezone(tz)


@pytest.fixture(autouse=True)
def clock_at_noon(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (new, run, wiring):
        monkeypatch.setattr(module, "datetime", Noon)


def shape(lines: list[str]) -> list[str]:
    """Lines without their numbers, hashes and lengths of time; of the lines that tell of one model or candidate each, one is left.

    Without the lines on progress, of which a slow machine prints more, and without alarms on concept drift, which these models of
    few trees raise on other days.
    """
    passing = r"and \d+ more models|\w+: [\d,]+ of [\d,]+, |  [\d-]+: check concept_drift: "
    steady = [line for line in lines if not re.match(passing, line)]
    timeless = [re.sub(r"(?<=this takes )(a few seconds|about \d+ \w+)", "#", line) for line in steady]
    masked = [re.sub(r"[0-9a-f]*[0-9][0-9a-f,.]*", "#", line) for line in timeless]
    alike = [
        re.sub(r"(?s)^(model #|(columns|earlier labels|parts of the time)[ ,]).*", "one of them …", line)
        for line in masked
    ]
    return [re.sub(r" {2,}", "  ", line).rstrip() for line, _ in groupby(alike)]


@pytest.mark.usefixtures("few_trees")
@pytest.mark.parametrize(
    "transcript",
    [pytest.param(text, marks=[pytest.mark.full] * (number > 0)) for number, text in enumerate(TRANSCRIPTS)],
    ids=["customers", "daily files", "a meter"],
)
def test_a_transcript_is_what_the_commands_print(cli, tmp_path, transcript):
    folder = tmp_path / "shop"
    folder.mkdir()
    yesterday = (NOON - timedelta(days=1)).date()
    for step in re.split(r"^(?=[#$] )", transcript, flags=re.MULTILINE)[1:]:
        first, *printed = step.splitlines()
        if first in STORIES:
            STORIES[first](folder, yesterday)
            continue
        answer = cli(folder, *first.removeprefix("$ batch-platform ").split())
        lines = [*answer.out.splitlines(), *(line for line in answer.err.splitlines() if line.startswith("Error"))]
        assert shape([line.replace(str(folder), FOLDER) for line in lines]) == shape(printed), first
