"""Ray Data on one machine: read_parquet, map_batches with one actor per core that holds the model, write_parquet.

    python ray_data.py MODEL OUTPUT_FOLDER FILE…

Writes Parquet files, not a database, which is less work than the others do.
"""

import os
import sys
import tempfile

import numpy as np
import polars as pl
import pyarrow as pa
import ray
import ray.data
from served import load

BATCH_ROWS = 131_072
CPUS_OF_AN_ACTOR = 0.5  # reading and writing need the rest to be scheduled at all


class Scorer:
    """One actor: loads the model once, scores batch after batch on its core."""

    def __init__(self, model: str) -> None:
        self.served = load(model, all_cores=False)

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = pl.DataFrame(batch)
        score: np.ndarray = self.served.score(rows)
        day = pl.col("path").str.split("/").list.last().str.split(".").list.first().alias("day")
        return self.served.with_score(rows, score).with_columns(rows.select(day)).to_arrow()


def main(model: str, output: str, *files: str) -> None:
    """Score the files into the output folder."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        ray.init(include_dashboard=False, log_to_driver=False, _temp_dir=folder, num_cpus=cores)
        ray.data.DataContext.get_current().enable_progress_bars = False
        table = ray.data.read_parquet(list(files), columns=load(model).columns, include_paths=True)
        actors = ray.data.ActorPoolStrategy(size=cores)
        table.map_batches(
            Scorer,
            fn_constructor_args=(model,),
            batch_size=BATCH_ROWS,
            batch_format="pyarrow",
            compute=actors,
            num_cpus=CPUS_OF_AN_ACTOR,
        ).write_parquet(output)
        ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
