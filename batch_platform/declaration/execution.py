"""The steps of a pipeline in Dagster, as declared under `dagster`."""

from typing import Literal

from pydantic import Field, field_validator

from batch_platform.declaration.notation import Block, DurationText, parse_duration


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
