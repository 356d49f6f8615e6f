"""What a project's own code and a notebook may call, with the types they rely on. Checked by pyright, run by nobody."""

from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import assert_type

import dagster as dg

from batch_platform import (
    BatchInference,
    BatchPlatformError,
    Home,
    Pipeline,
    PipelineSpec,
    PlanRequest,
    Stamp,
    build_definitions,
    load_from_defs_folder,
    make_plan,
)
from batch_platform.declaration.calendar import Partition
from batch_platform.pipeline.build import Built
from batch_platform.pipeline.evaluate import Evaluated
from batch_platform.pipeline.train import Trained
from batch_platform.planning.plan import Plan
from batch_platform.planning.state import State
from batch_platform.scoring.run import Committed


def in_a_project(folder: Path) -> dg.Definitions:
    declared = BatchInference.model_validate({"name": "churn"})
    assert_type(declared, BatchInference)
    assert_type(declared.name, str)
    assert_type(load_from_defs_folder(path_within_project=folder), dg.Definitions)
    return build_definitions(declared, folder, {"crm": object()})


def in_a_notebook(folder: Path, now: datetime) -> None:
    spec = PipelineSpec.model_validate({"name": "churn"})
    pipeline = Pipeline(spec, folder, Home(folder / "home").create())
    stamp = Stamp("notebook", now)
    state = assert_type(pipeline.state(), State)
    plan = assert_type(make_plan(spec, state, PlanRequest(datetime.now(UTC))), Plan)
    partitions = [item.partition for item in plan.of("features")]
    assert_type(partitions, list[Partition])
    assert_type(pipeline.build_features(partitions, stamp), Iterator[Built])
    assert_type(pipeline.train(partitions[0], stamp, params={"max_iter": 5}), Trained)
    assert_type(pipeline.score(partitions, stamp, force=True), Generator[Committed])
    assert_type(pipeline.evaluate(partitions, stamp), Iterator[Evaluated])
    assert_type(pipeline.conclude(now), tuple[State, Plan])


def what_goes_wrong(error: BatchPlatformError) -> str:
    assert_type(error.hint, str | None)
    return str(error)
