"""Periodic batch inference on Dagster: one YAML and one SQL file give features, a trained model and predictions.

A tour, from the inside out; each module may import only those above it:

- `errors`, `partitions`: what can go wrong, said well; the calendar of time windows.
- `spec`, `home`: a pipeline as it is declared; where everything lies on disk.
- `contract`: what a row must look like, and its encoding to a matrix.
- `features`, `models`, `monitoring`: tables from sources, bundles on disk, measures of quality.
- `training`, `scoring`: a bundle from history, predictions from a bundle.
- `warehouse`, `publish`, `registry`: DuckDB, the readers' copy of it, and which version serves when.
- `pipeline`, `plan`, `status`: the steps of one pipeline, what is due, and what happened.
- `components`, `cli`: Dagster and the `batch-platform` command, thin wiring round the above.
"""

__version__ = "0.1.0"
