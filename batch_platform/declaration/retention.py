"""The retention of a pipeline's rows, as declared under `retention`."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from batch_platform.declaration.calendar import Duration
from batch_platform.declaration.notation import Block, parse_duration

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
