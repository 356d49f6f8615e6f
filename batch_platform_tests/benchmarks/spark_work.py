"""A driver of Spark that scores feature files by the Spark engine or by plain Spark code, as often as it is asked to.

    python -m batch_platform_tests.benchmarks.spark_work MASTER WORKERS [plain]

With `plain`, Java compiles as it does by itself: it reads and writes the files of plain Spark code.
Reads one `Request` a line, as JSON, and answers each with an `Answer`. The first answer comes when the executors are there, so that
no measurement holds their start.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
import pyarrow as pa
import yaml

from batch_platform.declaration.engine import Spark
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.scoring.partition import ScoringOrder
from batch_platform.spark.scoring import SparkEngine
from batch_platform.spark.session import executors_of, spark_session
from batch_platform.warehouse.home import Home

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

BATCH_ROWS = 131_072  # of plain Spark code, as of the engine; the default is 10,000
WRITTEN = "id long, ts timestamp, score double, prediction boolean"
CONF: dict[str, Any] = {
    "spark.executor.cores": 1,
    "spark.executor.memory": "1g",
    "spark.executorEnv.OPENBLAS_NUM_THREADS": "1",
    "spark.driver.memory": "1g",
    "spark.log.level": "ERROR",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.execution.arrow.maxRecordsPerBatch": BATCH_ROWS,
}


@dataclass(frozen=True)
class Request:
    """Some partitions to score, and how."""

    folder: str  # of the pipeline's YAML
    home: str
    keys: Sequence[str]
    output: str  # existing folder for the scores
    model: str = ""  # file of the exported estimator; empty for the engine


@dataclass(frozen=True)
class Answer:
    """What a request cost."""

    seconds: float = 0.0
    python_mib: float = 0.0  # resident memory of the driver's Python when the work is done


def by_engine(pipeline: Pipeline, orders: Sequence[ScoringOrder], output: Path) -> None:
    """Score feature files by the Spark engine, on the session of this process."""
    with SparkEngine(pipeline.spec, output, Stamp("benchmark", datetime.now(UTC))) as engine:
        for staged in engine.staged(orders):
            for path in staged.rejected:
                path.unlink()


def by_plain_code(session: "SparkSession", orders: Sequence[ScoringOrder], output: Path, model: str) -> None:
    """Score feature files as one does with Spark and scikit-learn alone, with the same division into tasks."""

    def scored(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        served = joblib.load(model)
        for batch in batches:
            rows = np.column_stack([batch.column(name).to_numpy(zero_copy_only=False) for name in served["names"]])
            score = served["estimator"].predict_proba(rows)[:, 1]
            columns = [batch.column("id"), batch.column("ts"), pa.array(score), pa.array(score > 0.5)]
            yield pa.RecordBatch.from_arrays(columns, ["id", "ts", "score", "prediction"])

    session.conf.set("spark.sql.files.maxPartitionBytes", max(order.features.stat().st_size for order in orders))
    table = session.read.parquet(*(str(order.features) for order in orders))
    table.mapInArrow(scored, WRITTEN).write.mode("overwrite").parquet(str(output))


def answered(request: Request, session: "SparkSession", spark: Spark) -> Answer:
    """Carry out a request."""
    from batch_platform_tests.harness.spark_cluster import orders_for  # needs pyspark, which the other workloads do not

    declared = yaml.safe_load(Path(request.folder, "defs.yaml").read_text(encoding="utf-8"))["attributes"]
    spec = PipelineSpec.model_validate({**declared, "engine": {"spark": spark.model_dump()}})
    pipeline = Pipeline(spec, Path(request.folder), Home(Path(request.home)))
    orders, output = orders_for(pipeline, request.keys), Path(request.output)
    began = time.perf_counter()
    if request.model:
        by_plain_code(session, orders, output, request.model)
    else:
        by_engine(pipeline, orders, output)
    return Answer(time.perf_counter() - began, resident_mib(os.getpid()))


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS:")), 0.0)


def main(master: str, workers: str, *plain: str) -> None:
    """Answer the requests on standard input until it ends."""
    spark = Spark(master=master, conf=CONF | {"spark.cores.max": int(workers)})
    with spark_session(spark, "benchmark", runs_sql=bool(plain)) as session:
        while executors_of(session) < int(workers):
            time.sleep(0.1)
        print(json.dumps(asdict(Answer())), flush=True)
        for line in sys.stdin:
            print(json.dumps(asdict(answered(Request(**json.loads(line)), session, spark))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
