"""The search for the parameters of an estimator, as it is declared."""

import json
from typing import Annotated, Any, TypeVar

from pydantic import Field, field_validator

from batch_platform.declaration.notation import Block

Value = TypeVar("Value")


class Search(Block):
    """Values of parameters that training tries; the best ones are used."""

    params: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        min_length=1,
        description="Values to try, by parameter. A step of a pipeline that `build` returns is reached as step__parameter.",
        examples=[{"learning_rate": [0.03, 0.1], "max_leaf_nodes": [15, 31]}],
    )
    trials: int = Field(
        default=20,
        ge=1,
        description="Maximum number of combinations to try, drawn at random with a fixed seed. Fewer combinations are all tried.",
        examples=[20],
    )

    @field_validator("params")
    @classmethod
    def _plain(cls, value: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return plain_parameters(value)

    @property
    def first(self) -> dict[str, Any]:
        """The first value of each parameter."""
        return {name: values[0] for name, values in self.params.items()}


def plain_parameters(parameters: dict[str, Value]) -> dict[str, Value]:
    """Return parameters of an estimator; raises ValueError for a value that JSON does not have, such as a date."""
    for name, parameter in parameters.items():
        try:
            json.dumps(parameter, sort_keys=True)
        except TypeError as error:
            msg = f"{name!r} is {parameter!r}, which is not a plain value; put dates and times in quotes"
            raise ValueError(msg) from error
    return parameters
