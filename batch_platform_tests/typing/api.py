"""What a project's own code and a notebook may call, with the types they rely on. Checked by pyright, run by nobody."""

from pathlib import Path
from typing import assert_type

import dagster as dg
import polars as pl

from batch_platform import (
    BatchInference,
    BatchPlatformError,
    Challenger,
    ColumnRule,
    DatabaseTable,
    Decide,
    Delivery,
    Drift,
    Features,
    Labels,
    Model,
    ModelComparison,
    Monitoring,
    Partitions,
    PerformanceRule,
    Pipeline,
    PipelineStatus,
    Predictions,
    Promote,
    Reasons,
    Retention,
    RunSummary,
    Source,
    Train,
    TrainedModel,
    build_definitions,
    compare_models,
    load_from_defs_folder,
    load_pipeline,
    read_predictions,
)


def in_a_project(folder: Path) -> dg.Definitions:
    declared = BatchInference.model_validate({"name": "churn"})
    assert_type(declared, BatchInference)
    assert_type(declared.name, str)
    assert_type(load_from_defs_folder(path_within_project=folder), dg.Definitions)
    return build_definitions(declared, folder, {"crm": object()})


def declared_by_classes() -> BatchInference:
    return BatchInference(
        name="churn",
        partitions=Partitions(every="day", start="2024-01-01", timezone="Europe/Berlin"),
        sources={
            "events": Source(parquet="events.parquet"),
            "customers": Source(sql=DatabaseTable(uri="postgresql://crm/shop", query="customers.sql")),
        },
        features=Features(sql="features.sql", key=["id"], time="ts", columns={"amount": ColumnRule(min=0)}),
        labels=Labels(sql="labels.sql", column="returned", delay="1 day"),
        model=Model(
            estimator="sklearn.ensemble.HistGradientBoostingClassifier",
            params={"max_iter": 5},
            train=Train(every="month", evaluate="7 days"),
            promote=Promote(metric="roc_auc", at_least=0.6),
        ),
        challengers=[Challenger(name="linear", estimator="sklearn.linear_model.LogisticRegression")],
        predictions=Predictions(
            keep=["shop"],
            decide=Decide(costs={"false_positive": 1, "false_negative": 8}),
            reasons=Reasons(count=3),
            deliver=[Delivery(parquet="out/returns")],
        ),
        monitoring=Monitoring(performance=PerformanceRule(warn_below=0.6), drift=Drift(warn=0.1, fail=0.25)),
        retention=Retention(features="90 days"),
    )


def in_a_notebook(folder: Path) -> None:
    pipeline = assert_type(load_pipeline(folder), Pipeline)
    assert_type(Pipeline(declared_by_classes(), folder, home="home").run(), RunSummary)
    trained = assert_type(pipeline.train("2024-02-01", force=True), TrainedModel)
    assert_type(pipeline.score(trained.version, "2024-02-01", to="2024-02-02"), RunSummary)
    assert_type(pipeline.status(recheck=True), PipelineStatus)
    assert_type(read_predictions(pipeline, to="2024-02-02"), pl.LazyFrame)
    assert_type(compare_models(pipeline, trained.version, "another"), ModelComparison)


def what_goes_wrong(error: BatchPlatformError) -> str:
    assert_type(error.hint, str | None)
    return str(error)
