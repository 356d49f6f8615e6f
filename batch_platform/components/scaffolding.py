"""What `dg scaffold defs batch_platform.components.BatchInference NAME` writes: a pipeline to fill in."""

import dagster as dg

from batch_platform.declaration.errors import WrongUseError
from batch_platform.declaration.notation import name_of

DEFS_YAML = """\
type: batch_platform.components.BatchInference
attributes:
  name: {name}                          # schema of the tables, prefix of the assets
  description: What is predicted and what for.
  # owners: ["team:yours"]
  partitions: {{every: day, start: "2026-01-01", timezone: UTC}}      # hour, day, week or month
  sources:                              # raw tables, by their name in the SQL; paths are relative to this folder
    events: {{parquet: events.parquet}}   # or csv, or duckdb with table, or python: module.function
  features:
    sql: features.sql                   # or python: module.function, Polars LazyFrames in, a LazyFrame out
    key: [id]                           # unique within a partition
    time: happened_at                   # a row outside its partition is an error
    # columns: {{amount: {{min: 0}}}}       # overrides what training infers
    # max_rejected: 1%                  # if more rows are rejected, nothing is published
  labels: {{sql: labels.sql, column: label, delay: 1 day}}    # leave out for clustering
  model:
    estimator: sklearn.ensemble.HistGradientBoostingClassifier        # or build: module.function
    # params: {{max_iter: 100}}
    train: {{every: month, window: all, evaluate: 14 days}}
    # promote: {{metric: roc_auc, at_least: 0.6, tolerance: 0.02}}
  # challengers: [{{name: linear, estimator: sklearn.linear_model.LogisticRegression}}]   # scored for comparison, never serve
  # predictions: {{keep: [country], schedule: "0 5 * * *"}}
  # monitoring: {{performance: {{warn_below: 0.6}}}}
"""
FEATURES_SQL = """\
-- One row for each thing to score in the partition, with what is known about it when the partition starts.
-- Each source is a view; $partition_start, $partition_end (TIMESTAMPTZ) and $partition_key are bound values.
SELECT
    id,                                 -- the key
    happened_at,                        -- the time, inside the partition
    amount                              -- features: everything else
FROM events
WHERE happened_at >= $partition_start AND happened_at < $partition_end
"""
LABELS_SQL = """\
-- Key and true outcome of the rows whose outcome is known.
SELECT id, label
FROM events
WHERE happened_at >= $partition_start AND happened_at < $partition_end AND label IS NOT NULL
"""


class BatchInferenceScaffolder(dg.Scaffolder):
    """Writes a commented `defs.yaml` and its SQL files."""

    def scaffold(self, request: dg.ScaffoldRequest) -> None:
        """Write the files into the requested folder.

        Raises:
            WrongUseError: The request is for Python instead of YAML, or to append to a file.
        """
        if request.scaffold_format != "yaml" or request.append:
            msg = "a pipeline can only be scaffolded as a folder with its own defs.yaml."
            raise WrongUseError(
                msg, hint="leave --format and --append out; in Python, write BatchInference(name=…, …)."
            )
        folder = request.target_path
        files = {"defs.yaml": DEFS_YAML.format(name=name_of(folder.name) or "my_pipeline")}
        files |= {"features.sql": FEATURES_SQL, "labels.sql": LABELS_SQL}
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
