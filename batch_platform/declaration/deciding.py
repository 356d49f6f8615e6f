"""The rule by which each scored row gets a decision, as declared under `predictions.decide`."""

import json
import math
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from batch_platform.declaration.errors import listed
from batch_platform.declaration.notation import Block, Share, as_share, with_guess
from batch_platform.declaration.wording import number

DECISION = "decision"  # the column that a rule adds
_WRONG = ("false_positive", "false_negative")
_RULES = ("threshold", "costs", "benefit", "top")
_DIGITS = 9  # a share of a number of rows is rounded to so many, since 0.29 of 100 rows is 28.999999999999996


def _by_text(value: object) -> object:
    """Write classes as text, as a model writes them: YAML reads some as numbers or truth values."""
    if not isinstance(value, dict):
        return value
    return {str(key).lower() if isinstance(key, bool) else str(key): _by_text(cost) for key, cost in value.items()}


Costs = Annotated[
    dict[str, float | dict[str, float]],
    BeforeValidator(_by_text),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": ["number", "object"]}}),
]


class Decide(Block):
    """The rule by which each scored row gets a decision. Exactly one of `threshold`, `costs`, `benefit` and `top`."""

    threshold: Share | None = Field(
        default=None, description="Act from this probability of the positive class on.", examples=[0.3]
    )
    costs: Costs | None = Field(
        default=None,
        description="Cost of each wrong decision: `false_positive` and `false_negative`; of several classes, under each true one, of each other.",
        examples=[{"false_positive": 1, "false_negative": 8}],
    )
    benefit: float | None = Field(default=None, gt=0, description="What acting on a positive row earns.", examples=[40])
    cost: float | None = Field(
        default=None, gt=0, description="What acting on a row costs. Goes with `benefit`.", examples=[2]
    )
    top: int | str | None = Field(
        default=None,
        description="Act on so many rows of a partition, those with the highest scores: a number or a share.",
        examples=[500, "5%"],
    )

    @field_validator("threshold")
    @classmethod
    def _probability(cls, value: float | None) -> float | None:
        if value is not None and not 0 < value < 1:
            meant = value / 100 if 2 <= value < 100 else 0.99 if value >= 1 else 0.01  # noqa: PLR2004 - percent
            msg = f"{value:g} is not a probability above 0 and below 1; did you mean {meant:g}?"
            raise ValueError(msg)
        return value

    @field_validator("costs")
    @classmethod
    def _costs(cls, value: dict[str, float | dict[str, float]] | None) -> dict[str, float | dict[str, float]] | None:
        rows = {} if value is None else value
        numbers = {name: cost for name, cost in rows.items() if not isinstance(cost, dict)}
        if value is not None and (numbers or not rows) and not set(rows) == set(numbers) == set(_WRONG):
            strange = next((name for name in numbers if name not in _WRONG), "")
            msg = f"has {listed(map(repr, rows)) or 'no costs'}; give a number as {' and '.join(_WRONG)}, or for each true class the cost of each other class"
            raise ValueError(with_guess(msg, strange, _WRONG))
        pairs = {
            f"{true}.{name}": cost for true, of in rows.items() if isinstance(of, dict) for name, cost in of.items()
        }
        if low := [f"{name} ({cost:g})" for name, cost in {**numbers, **pairs}.items() if cost <= 0]:
            msg = f"{listed(low)} must be above 0; a right decision costs nothing and is left out"
            raise ValueError(msg)
        return value

    @field_validator("top", mode="before")
    @classmethod
    def _rows(cls, value: object) -> object:
        share, meant = as_share(value), "5%"
        allowed = value is None
        if isinstance(value, int) and not isinstance(value, bool):
            allowed, meant = value > 0, "1"
        elif isinstance(value, str) and isinstance(share, float):
            allowed, meant = 0 < share <= 1, "100%" if share > 1 else meant
        if allowed:
            return value
        msg = f"{value!r} is neither a number of rows above 0 nor a share above 0% and at most 100%; write for example {meant}"
        raise ValueError(msg)

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        declared = [key for key in _RULES if getattr(self, key) is not None]
        if len(declared) != 1:
            msg = f"give exactly one of `threshold`, `costs`, `benefit` (with `cost`) and `top`; there are {listed(declared) or 'none'}"
            raise ValueError(msg)
        if (self.benefit is None) != (self.cost is None):
            msg = "`benefit` and `cost` belong together: what acting on a positive row earns, and what acting on any row costs"
            raise ValueError(msg)
        if self.benefit is not None and self.cost is not None and self.cost >= self.benefit:
            msg = f"acting on a row would never pay: `cost` ({self.cost:g}) must be below `benefit` ({self.benefit:g})"
            raise ValueError(msg)
        return self

    @property
    def by_class(self) -> dict[str, dict[str, float]] | None:
        """The cost of deciding a class where another is true, by true and decided class; None for any other rule."""
        rows = {name: row for name, row in (self.costs or {}).items() if isinstance(row, dict)}
        return rows or None

    @property
    def of_errors(self) -> tuple[float, float] | None:
        """The costs of a false positive and of a false negative; None for any other rule."""
        if self.costs is None or self.by_class:
            return None
        positive, negative = (self.costs[name] for name in _WRONG)
        return (positive, negative) if isinstance(positive, float) and isinstance(negative, float) else None

    @property
    def probability(self) -> float | None:
        """The probability of the positive class from which a row is acted on; None for `top`, and for costs by class."""
        if self.benefit is not None and self.cost is not None:
            return self.cost / self.benefit
        return self.threshold if self.of_errors is None else self.of_errors[0] / sum(self.of_errors)

    def most(self, rows: int) -> int:
        """The number of rows that `top` acts on in a partition of so many."""
        share = as_share(self.top)
        return min(rows, share if isinstance(share, int) else math.floor(round(float(str(share)) * rows, _DIGITS)))

    def __str__(self) -> str:
        """The rule in words."""
        if self.probability is not None:
            return f"act on a row from a probability of {number(self.probability)} on"
        if self.by_class:
            return "decide the class of lowest expected cost"
        return f"act on the {self.top} {'' if isinstance(self.top, str) else 'rows '}of each partition with the highest scores"


def rule_text(declared: Decide | None) -> str | None:
    """A rule as JSON, by which the ledger tells rules apart; None without one."""
    return None if declared is None else json.dumps(declared.model_dump(exclude_none=True), sort_keys=True)


def rule_in(text: str | None) -> Decide | None:
    """The rule that the ledger holds as JSON; None without one."""
    return None if text is None else Decide.model_validate_json(text)
