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
    from batch_platform.components import BatchInference, build_definitions, load_from_defs_folder
    from batch_platform.declaration.errors import BatchPlatformError
    from batch_platform.declaration.spec import PipelineSpec
    from batch_platform.declaration.stamp import Stamp
    from batch_platform.pipeline.pipeline import Pipeline
    from batch_platform.planning.plan import make_plan
    from batch_platform.planning.request import PlanRequest
    from batch_platform.warehouse.home import Home
else:
    _PLACES = {  # imported when first asked for: Dagster, DuckDB and polars take a second
        "BatchInference": "batch_platform.components",
        "BatchPlatformError": "batch_platform.declaration.errors",
        "Home": "batch_platform.warehouse.home",
        "Pipeline": "batch_platform.pipeline.pipeline",
        "PipelineSpec": "batch_platform.declaration.spec",
        "PlanRequest": "batch_platform.planning.request",
        "Stamp": "batch_platform.declaration.stamp",
        "build_definitions": "batch_platform.components",
        "load_from_defs_folder": "batch_platform.components",
        "make_plan": "batch_platform.planning.plan",
    }

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
    "Home",
    "Pipeline",
    "PipelineSpec",
    "PlanRequest",
    "Stamp",
    "build_definitions",
    "load_from_defs_folder",
    "make_plan",
]
__version__ = "0.2.0"
