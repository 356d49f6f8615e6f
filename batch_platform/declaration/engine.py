"""The engine that scores a pipeline, as declared under `engine`."""

import re
from typing import Self

from pydantic import ConfigDict, Field, model_validator

from batch_platform.declaration.errors import listed
from batch_platform.declaration.extensions import ENGINES
from batch_platform.declaration.inputs import STORES, scheme_of
from batch_platform.declaration.notation import Block, DurationText, parse_duration, with_guess

LOCAL, SPARK = "local", "spark"
# By the scheme of the addresses that name a host: the port that need not be written, if there is one.
DEFAULT_PORTS = {"spark": None, "sc": 15002}
ADDRESS = re.compile(r"\[?([^\]/,;\s]+?)\]?(?::(\d+))?")


class Spark(Block):
    """An Apache Spark cluster."""

    master: str = Field(
        default="local[*]",
        min_length=1,
        description="Master of the cluster: `spark://HOST:PORT`, `yarn`, `k8s://URL`, `local[*]` for this machine, or `sc://HOST:PORT` for a server of Spark Connect.",
        examples=["spark://host:7077"],
    )
    conf: dict[str, str | int | float | bool] = Field(
        default_factory=dict,
        description="Spark's configuration, passed on as it is.",
        examples=[{"spark.executor.memory": "8g"}],
    )
    wait_for_executors: DurationText = Field(
        default="10 minutes",
        description="How long a run waits while the cluster gives it no executor. Then it fails.",
        examples=["1 hour"],
    )
    rows_per_task: int = Field(
        default=500_000,
        ge=1,
        description="Number of rows from which a partition is divided into several tasks. A task scores whole row groups of the feature file (122,880 rows each).",
        examples=[1_000_000],
    )
    staging: str | None = Field(
        default=None,
        description="Folder in an object store (`s3://`, `gs://`, `az://`) through which the machines of the cluster get features and models, and return scores. Without it they must see the home under the same path.",
        examples=["s3://bucket/staging"],
    )
    resource: str | None = Field(
        default=None,
        min_length=1,
        description="Key of a Dagster resource that has a `spark_session`, such as dagster-pyspark's. Runs use this session and leave it running. `check`, which runs no asset, starts one by `master` and `conf`.",
        examples=["pyspark"],
    )

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        scheme, _, rest = self.master.partition("/;")[0].partition("://")
        if scheme in DEFAULT_PORTS:
            pairs = [ADDRESS.fullmatch(part) for part in rest.rstrip("/").split(",")]
            if not all(pair and (pair[2] or DEFAULT_PORTS[scheme]) for pair in pairs):
                written = (
                    "sc://HOST or sc://HOST:PORT" if scheme == "sc" else "spark://HOST:PORT, as its web page shows it"
                )
                msg = f"engine.spark.master is the address of no {'server' if scheme == 'sc' else 'master'}; write {written}"
                raise ValueError(msg)
        if self.staging is not None and scheme_of(self.staging) not in STORES:
            stores = listed(f"{store}://" for store in STORES)
            msg = f"engine.spark.staging begins with one of {stores}; a file system that all machines see needs no staging"
            raise ValueError(msg)
        if "spark.remote" in self.conf:
            msg = (
                "engine.spark.conf has spark.remote; give that address as engine.spark.master, such as sc://host:15002"
            )
            raise ValueError(msg)
        return self

    @property
    def patience(self) -> float:
        """Seconds that a run waits for an executor."""
        return parse_duration(self.wait_for_executors).nominal.total_seconds()


class DeclaredEngine(Block):
    """The engine that scores."""

    model_config = ConfigDict(json_schema_extra={"type": ["object", "string"]})

    name: str = Field(
        default=LOCAL,
        description="Name of the engine: `local`, which scores on the cores of this machine, or `spark`. `engine: local` is short for it.",
        examples=[LOCAL],
        json_schema_extra=lambda schema: schema.update(enum=[*ENGINES]),
    )
    spark: Spark | None = Field(
        default=None,
        description="Score on Apache Spark. Every machine of the cluster must see the home under the same path, unless `staging` is declared.",
        examples=[{"master": "spark://host:7077"}],
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, data: object) -> object:
        if isinstance(data, str):
            return {"name": data}
        if isinstance(data, dict) and data.get("spark") is not None:
            return {"name": SPARK, **data}
        return data

    @property
    def on_spark(self) -> Spark:
        """The declaration of the engine 'spark', or its defaults."""
        return self.spark or Spark()

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.name not in ENGINES:
            msg = f"{self.name!r} is not an engine; allowed are {listed(map(repr, ENGINES))}"
            raise ValueError(with_guess(msg, self.name, ENGINES))
        if self.spark is not None and self.name != SPARK:
            msg = f"engine.spark goes with the engine 'spark' only, not with {self.name!r}"
            raise ValueError(msg)
        return self
