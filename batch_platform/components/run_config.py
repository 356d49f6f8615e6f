"""The options of a run: in the launchpad, and wherever else a run is launched."""

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
        description="Build partitions again even if neither the SQL nor the sources changed. Otherwise they are skipped.",
    )


class PredictionsConfig(dg.Config):
    """How partitions are scored."""

    force: bool = Field(
        default=False,
        description="Score partitions again even if features, model and rules are unchanged. A partition may become empty.",
    )
    model: str | None = Field(
        default=None,
        description="Version to score with, such as 2013-03-01-3f9c1a2b, instead of the champion as of each partition's start.",
    )
    replay: bool = Field(
        default=False,
        description="Rebuild and score only the partitions that have rejected rows. Cannot be combined with `force` or `model`.",
    )


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained: the values of `training_schema`.

    Args:
        params: Estimator parameters that replace or extend the declared ones, for this training only.
        until: Key of the first partition that the only model of a pipeline serves.
        challengers_only: Whether to train only challengers.
    """

    params: dict[str, Any] = field(default_factory=dict[str, Any])
    until: str | None = None
    challengers_only: bool = False


def training_config(wiring: Wiring, values: Mapping[str, Any]) -> TrainingConfig:
    """Read the configuration of a training.

    Parameters equal to the declared ones are dropped in favour of the declaration: JSON turns `{0: 1}` into `{"0": 1}`.
    """
    declared = wiring.spec.model.params
    config = TrainingConfig(**values)
    changed = {
        name: value
        for name, value in config.params.items()
        if name not in declared or json.dumps(value, sort_keys=True) != json.dumps(declared[name], sort_keys=True)
    }
    return replace(config, params=changed)


def training_schema(wiring: Wiring) -> Mapping[str, Any]:
    """The configuration schema of a training, with the declared parameters filled in.

    Uses Dagster's own types: in a `dg.Config`, a parameter whose value is None breaks the launchpad.
    """
    schema: dict[str, Any] = {
        "params": dg.Field(
            dg.Permissive(),
            default_value=_declared_parameters(wiring),
            description="Estimator parameters for this training only, such as {max_iter: 300}. They replace or extend those of "
            "model.params. The gate judges the resulting version like any other.",
        )
    }
    if wiring.serving_periods is None:
        schema["until"] = dg.Field(
            dg.Noneable(str), is_required=False, description="Key of the first partition the model serves."
        )
    if wiring.spec.challengers:
        schema["challengers_only"] = dg.Field(
            bool,
            default_value=False,
            description="Train only the challengers missing in this serving period; the model stays as it is.",
        )
    return schema


def _declared_parameters(wiring: Wiring) -> dict[str, Any]:
    """The declared parameters; none if one of them holds a secret."""
    params = wiring.spec.model.params
    return params if redacted(params) == params else {}
