"""Periodic batch inference on Dagster: one YAML and one SQL file give features, a trained model and predictions.

A tour, from the inside out; a module imports from its own stop and from those before it:

- `redaction`, `errors`, `partitions`, `notation`: no secret is told; what can go wrong, said well; the calendar of time
  windows; how values are written.
- `yaml_file`: what a declaration's file must be before anything is read from it.
- `inputs`, `learners`, `spec`, `home`: a pipeline as it is declared; where everything lies on disk.
- `sources`, `query`, `lineage`, `rows`, `driving`, `contract`: raw tables, the SQL over them, which columns its columns come
  from, what its rows must be, their encoding.
- `forest`: tree ensembles as flat arrays, and the compiled kernels that evaluate them.
- `features`, `models`, `monitoring`, `rejections`: tables from sources, bundles on disk, measures of quality, rows kept
  aside.
- `lock`, `ledger`, `replacing`, `challenger_tables`, `checkpoint`, `warehouse`, `publish`, `tables`: DuckDB under a lock, what
  its tables hold, how partitions of them are replaced and nothing is torn, the readers' copy of it, and tables of users.
- `registry`, `promotion`, `challenger_periods`: which version serves when, what people decide of them, and which challengers
  lack one.
- `sample`, `training`, `scoring`, `outcomes`: a bundle from history, predictions from a bundle, and how they did.
- `threads`, `recorded`, `repeated`, `staging`, `shadow`, `staged`, `stream`: predictions of partitions of any size, and what challengers
  give beside them, on all cores, into files.
- `plan`, `staleness`, `history`, `gate`, `importing`, `learning`, `challengers`, `evaluation`, `scoring_run`: what is due
  and what is out of date; the recorded past, models learnt from it or held against it, whether they may serve, and how
  they did; what is scored and committed.
- `pipeline`, `replay`, `backtested`, `backtesting`, `status`, `provenance`, `cleaning`: the steps of one pipeline, what
  another model would have done, what came of them and from what, and what they leave behind.
- `proposing`: a first pipeline for a table that nobody has described.
- `components`, `definitions`, `defs`: Dagster, thin wiring round the above, and the pipelines that ship with it.
- `cli`: the `batch-platform` command.
"""

__version__ = "0.1.0"
