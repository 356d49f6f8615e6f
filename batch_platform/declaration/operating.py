"""The operation of a pipeline: its steps in Dagster, its report, and the retention of its rows."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from batch_platform.declaration.calendar import Duration
from batch_platform.declaration.notation import Block, Cron, DurationText, parse_duration


class Retry(Block):
    """Retries of a step that another process kept from the warehouse."""

    times: int = Field(default=2, ge=0, description="How often a step begins again before it fails.", examples=[2])
    delay: DurationText = Field(
        default="30 seconds",
        description="How long it pauses first. It has then already waited BATCH_PLATFORM_LOCK_TIMEOUT seconds.",
        examples=["30 seconds"],
    )

    @property
    def seconds(self) -> float:
        """Length of the pause."""
        return parse_duration(self.delay).nominal.total_seconds()


class Execution(Block):
    """Options of the steps in Dagster."""

    pool: str | None = Field(
        default=None,
        description="Dagster's concurrency pool of every step: a limit that several pipelines can share.",
        examples=["warehouse"],
    )
    retry: Retry = Field(
        default_factory=Retry,
        description="What a step does when another process holds the warehouse. No other failure is tried again.",
        examples=[{"times": 2, "delay": "30 seconds"}],
    )
    max_partitions_per_run: int | None = Field(
        default=None,
        ge=1,
        description="Maximum number of partitions of one run. Left out: a whole range in one run, and at most 1,000 partitions in "
        "a run of `batch-platform run`.",
        examples=[31],
    )
    executor: Literal["in_process", "project"] = Field(
        default="in_process",
        description="Executor of the pipeline's own jobs: `in_process` runs all steps of a run in one process, `project` uses the executor of the project's Definitions, which may run each step in a process or container of its own.",
        examples=["project"],
    )
    keep_runs: DurationText = Field(
        default="90 days",
        description="How long Dagster's records of a run are kept. The newest materialization of each partition stays for good.",
        examples=["30 days"],
    )

    @field_validator("pool")
    @classmethod
    def _pool(cls, value: str | None) -> str | None:
        if value is not None and value.split() != [value]:
            msg = f"{value!r} is not the name of a pool; write it without spaces"
            raise ValueError(msg)
        return value


ReportEvery = Literal["week", "month"]
_CRONS: dict[ReportEvery, str] = {"week": "0 7 * * 1", "month": "0 7 1 * *"}


class Report(Block):
    """The schedule of a report that is written for people who never open Dagster."""

    every: ReportEvery = Field(
        default="month", description="What is summed up and compared with the one before, and how often it is written."
    )
    schedule: Cron | None = Field(
        default=None,
        description="Cron expression of the schedule, in the pipeline's time zone. Left out: at 7:00 on the first day of the month, or on Monday.",
        examples=["0 7 1 * *"],
    )

    compare: bool = Field(
        default=True,
        description="Whether the newest month or week is compared with the one before. False where partitions are no course of "
        "time, such as schools: all that a report shows are then summed up together.",
    )

    @property
    def cron(self) -> str:
        """The cron expression of the schedule."""
        return self.schedule or _CRONS[self.every]


RetentionKind = Literal["features", "predictions", "rejected_rows"]
_YEARS = re.compile(r"([0-9]{1,3})\s*years?")


def _age(text: str) -> Duration:
    """Read a duration, which may be in years of 365.25 days."""
    years = _YEARS.fullmatch(text.strip())
    return Duration(days=int(years[1]) * 1461 // 4) if years else parse_duration(text)


Age = Annotated[str, AfterValidator(lambda text: _age(text) and text)]


class Retention(Block):
    """Ages, from the end of their partition, at which rows are removed, by kind."""

    features: Age | None = Field(
        default=None,
        description="Age at which feature files are removed. Those in the declared training window of the newest model stay. Left out: kept for good.",
        examples=["90 days"],
    )
    predictions: Age | None = Field(
        default=None,
        description="Age at which all that was scored and measured of a partition is removed, if its labels are known and measured. Left out: kept for good.",
        examples=["3 years"],
    )
    rejected_rows: Age | None = Field(
        default=None,
        description="Age at which rejected rows are removed. Left out: kept for good.",
        examples=["90 days"],
    )

    @property
    def ages(self) -> dict[RetentionKind, Duration]:
        """The declared ages, by kind."""
        kinds: tuple[RetentionKind, ...] = ("features", "predictions", "rejected_rows")
        return {kind: _age(text) for kind in kinds if (text := getattr(self, kind)) is not None}
