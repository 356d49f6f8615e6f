"""The reasons that are stored with a score, as declared under `predictions.reasons`."""

from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from batch_platform.declaration.notation import Block


class Reasons(Block):
    """The columns that moved a score most, and the rows that are given them."""

    model_config = ConfigDict(json_schema_extra={"type": ["object", "integer"]})

    count: int = Field(ge=1, description="Number of columns.", examples=[3])
    above: float | None = Field(
        default=None,
        description="Only rows that score higher have reasons. Left out: all rows.",
        examples=[0.5],
    )
    of: Literal["rows", "decisions"] = Field(
        default="rows", description="decisions: only rows that `decide` selects.", examples=["decisions"]
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, data: object) -> object:
        return {"count": data} if isinstance(data, int) and not isinstance(data, bool) else data

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if self.above is not None and self.of == "decisions":
            msg = "give one of `above` and `of`: either says which rows have reasons"
            raise ValueError(msg)
        return self
