"""Periodic batch inference on Dagster: one YAML and one SQL file give features, a trained model and predictions.

Each folder is a room, and a room imports only from those named before it:

`declaration` (a pipeline as declared), `warehouse` (the DuckDB file and its ledger), `monitoring` (measures) and `features`
(raw tables to feature files), `models` (contract, bundles, who serves), `scoring` (predictions from a bundle), `pipeline` (the steps
and the plan), `reports` (a page for people who decide), `components` (Dagster), `cli` (the command). `defs` holds the shipped
pipelines, `guide` the user guide.

Follow a row: `features/build.py`, `models/contract.py`, `scoring/batch.py`, `warehouse/database.py`, `warehouse/published.py`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batch_platform.api import Pipeline, compare_models, load_pipeline, read_predictions
    from batch_platform.cli.summary import RunSummary, TrainedModel
    from batch_platform.components import BatchInference, build_definitions, load_from_defs_folder
    from batch_platform.declaration.databases import DatabaseTable, DeliveredTable
    from batch_platform.declaration.engine import DeclaredEngine, Spark
    from batch_platform.declaration.errors import BatchPlatformError
    from batch_platform.declaration.inputs import (
        ColumnRule,
        Driving,
        Features,
        IcebergSnapshot,
        IcebergTable,
        Labels,
        Partitions,
        RejectedBudget,
        Source,
    )
    from batch_platform.declaration.model import Challenger, Model, ModelCard, Promote, Search, Train
    from batch_platform.declaration.monitored import Drift, DriftBounds, Monitoring, PerformanceRule
    from batch_platform.declaration.operating import Execution, Report, Retention, Retry
    from batch_platform.declaration.predictions import Decide, Delivery, Predictions, Reasons
    from batch_platform.pipeline.model_comparison import ModelComparison
    from batch_platform.pipeline.status import PipelineStatus
else:
    _NAMES = {  # imported when first asked for: Dagster, DuckDB and polars take a second
        "api": "Pipeline compare_models load_pipeline read_predictions",
        "cli.summary": "RunSummary TrainedModel",
        "components": "BatchInference build_definitions load_from_defs_folder",
        "declaration.databases": "DatabaseTable DeliveredTable",
        "declaration.engine": "DeclaredEngine Spark",
        "declaration.errors": "BatchPlatformError",
        "declaration.inputs": "ColumnRule Driving Features IcebergSnapshot IcebergTable Labels Partitions RejectedBudget Source",
        "declaration.model": "Challenger Model ModelCard Promote Search Train",
        "declaration.monitored": "Drift DriftBounds Monitoring PerformanceRule",
        "declaration.operating": "Execution Report Retention Retry",
        "declaration.predictions": "Decide Delivery Predictions Reasons",
        "pipeline.model_comparison": "ModelComparison",
        "pipeline.status": "PipelineStatus",
    }
    _PLACES = {name: f"{__name__}.{place}" for place, names in _NAMES.items() for name in names.split()}

    def __getattr__(name: str) -> object:
        """Import a public name when it is first asked for."""
        from importlib import import_module

        if name not in _PLACES:
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        return getattr(import_module(_PLACES[name]), name)


__all__ = [
    "BatchInference",
    "BatchPlatformError",
    "Challenger",
    "ColumnRule",
    "DatabaseTable",
    "Decide",
    "DeclaredEngine",
    "DeliveredTable",
    "Delivery",
    "Drift",
    "DriftBounds",
    "Driving",
    "Execution",
    "Features",
    "IcebergSnapshot",
    "IcebergTable",
    "Labels",
    "Model",
    "ModelCard",
    "ModelComparison",
    "Monitoring",
    "Partitions",
    "PerformanceRule",
    "Pipeline",
    "PipelineStatus",
    "Predictions",
    "Promote",
    "Reasons",
    "RejectedBudget",
    "Report",
    "Retention",
    "Retry",
    "RunSummary",
    "Search",
    "Source",
    "Spark",
    "Train",
    "TrainedModel",
    "build_definitions",
    "compare_models",
    "load_from_defs_folder",
    "load_pipeline",
    "read_predictions",
]
__version__ = "0.2.0"
