"""Periodic batch inference on Dagster: one YAML and one SQL file give features, a trained model and predictions.

Each folder is a room, and a room imports only from those named before it:

`declaration` (a pipeline as declared), `warehouse` (the DuckDB file and its ledger), `monitoring` (measures) and `features`
(raw tables to feature files), `models` (contract, bundles, who serves), `scoring` (predictions from a bundle), `pipeline` (the steps
and the plan), `reports` (a page for people who decide), `components` (Dagster), `cli` (the command). `defs` holds the shipped
pipelines, `guide` the user guide.

Follow a row: `features/build.py`, `models/contract.py`, `scoring/batch.py`, `warehouse/database.py`, `warehouse/published.py`.
"""

__version__ = "0.2.0"
