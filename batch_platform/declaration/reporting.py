"""The report that is written on a schedule, as declared under `report`."""

from typing import Literal

from pydantic import Field

from batch_platform.declaration.notation import Block, Cron

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
