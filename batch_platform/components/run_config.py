"""What a run can be told: in the launchpad, and by who launches one otherwise."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import dagster as dg
from pydantic import Field

from batch_platform.components.wiring import Wiring
from batch_platform.declaration.redaction import redacted


class FeaturesConfig(dg.Config):
    """How features are built."""

    force: bool = Field(
        default=False,
        description="Build again even where neither the SQL nor the sources changed. Otherwise such a partition is skipped.",
    )


class PredictionsConfig(dg.Config):
    """How partitions are scored."""

    force: bool = Field(
        default=False,
        description="Score again even where neither features, model nor rules changed; a partition may become empty.",
    )
    model: str | None = Field(
        default=None,
        description="Score by this version, such as 2013-03-01-3f9c1a2b, instead of the champion as of the partition's start.",
    )
    replay: bool = Field(
        default=False,
        description="Rebuild and score only the partitions that have rejected rows. Cannot be combined with `force` or `model`.",
    )


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained, of what `training_schema` offers.

    Args:
        params: Of the estimator, beside or instead of the declared ones, for this training only.
        until: Key of the first partition that the one model of a pipeline serves.
        challengers_only: Whether the model itself stays as it is.
    """

    params: dict[str, Any] = field(default_factory=dict[str, Any])
    until: str | None = None
    challengers_only: bool = False


def training_config(wiring: Wiring, given: Mapping[str, Any]) -> TrainingConfig:
    """What a training was told.

    A parameter that is as declared is left to the declaration: on its way through JSON, `{0: 1}` has become `{"0": 1}`.
    """
    declared = wiring.spec.model.params
    told = TrainingConfig(**given)
    changed = {
        name: value
        for name, value in told.params.items()
        if name not in declared or json.dumps(value, sort_keys=True) != json.dumps(declared[name], sort_keys=True)
    }
    return replace(told, params=changed)


def training_schema(wiring: Wiring) -> Mapping[str, Any]:
    """What can be told to a training of this pipeline, the declared parameters filled in.

    Written in Dagster's own types: in a `dg.Config`, a parameter of None breaks the launchpad.
    """
    schema: dict[str, Any] = {
        "params": dg.Field(
            dg.Permissive(),
            default_value=_declared_parameters(wiring),
            description="Parameters of the estimator for this training only, such as {max_iter: 300}; they replace or add to "
            "those of model.params. The version that comes of it is judged by the gate like any other.",
        )
    }
    if wiring.serving_periods is None:
        schema["until"] = dg.Field(
            dg.Noneable(str), is_required=False, description="Key of the first partition that the model serves."
        )
    if wiring.spec.challengers:
        schema["challengers_only"] = dg.Field(
            bool,
            default_value=False,
            description="Train only the challengers that this serving period lacks; the model stays as it is.",
        )
    return schema


def _declared_parameters(wiring: Wiring) -> dict[str, Any]:
    """The declared parameters; none of them if a secret is among them."""
    params = wiring.spec.model.params
    return params if redacted(params) == params else {}
