"""Assets of users that store their rows in the warehouse."""

import fcntl
from typing import Any

import duckdb

from batch_platform_tests.harness.deployment import SCORED_FROM, Deployment

LAST = "2024-02-10"


def score_ten_days(deployed: Deployment) -> None:
    deployed.score(SCORED_FROM, LAST)
    deployed.pipeline.publish()


def stored(deployment: Deployment, query: str = "FROM reports.table ORDER BY ALL") -> list[tuple[Any, ...]]:
    """What readers find."""
    with duckdb.connect(str(deployment.pipeline.home.published.resolve()), read_only=True) as con:
        return con.execute(query).fetchall()


class Held:
    """The warehouse, held as another process holds it."""

    def __init__(self, deployment: Deployment) -> None:
        self._file = deployment.pipeline.home.warehouse_lock.open("r+")

    def __enter__(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._file.close()
