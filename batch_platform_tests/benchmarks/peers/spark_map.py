"""Spark on one machine: read Parquet, mapInArrow with the model loaded once per Python worker, write Parquet.

    python spark_map.py MODEL OUTPUT_FOLDER FILE…

Writes Parquet files, not a database, which is less work than the others do.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
from pyspark.sql import SparkSession, functions
from pyspark.sql.types import BooleanType, DoubleType, StringType, StructField, StructType
from served import load, loaded

BATCH_ROWS = 131_072


def main(model: str, output: str, *files: str) -> None:
    """Score the files into the output folder."""
    cores = len(os.sched_getaffinity(0))
    os.environ |= {
        "OMP_NUM_THREADS": "1",  # one worker per core, one thread per worker
        "OPENBLAS_NUM_THREADS": "1",
        "PYSPARK_PYTHON": sys.executable,
        "PYTHONPATH": str(Path(__file__).parent),
    }
    spark = (
        SparkSession.builder.master(f"local[{cores}]")
        .config("spark.ui.enabled", value=False)
        .config("spark.driver.memory", "4g")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", BATCH_ROWS)
        .getOrCreate()
    )
    served = load(model)
    day = functions.regexp_extract(functions.input_file_name(), r"([^/.]+)\.[^/]*$", 1)
    table = spark.read.parquet(*files).select(*served.columns).withColumn("day", day)

    def score(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            rows, here = pl.DataFrame(batch), loaded(model)
            scored = here.with_score(rows, here.score(rows)).with_columns(rows["day"])
            yield from scored.to_arrow().to_batches()

    added = [("score", DoubleType()), ("prediction", BooleanType()), ("day", StringType())]
    schema = StructType(
        [*(table.schema[name] for name in served.carried), *(StructField(name, kind) for name, kind in added)]
    )
    table.mapInArrow(score, schema).write.parquet(output)
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
