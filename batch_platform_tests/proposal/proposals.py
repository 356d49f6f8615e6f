"""Orders and proposals for them."""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from batch_platform.declaration.calendar import LONGEST
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.proposal.choices import Asked, Proposal, propose
from batch_platform.proposal.files import files_of, layout
from batch_platform.proposal.origin import locate
from batch_platform.proposal.survey import survey
from batch_platform.proposal.trial import past_of, that_runs
from batch_platform.warehouse.home import Home

ROWS = 900
DAYS = 30
START = datetime(2025, 1, 1)  # noqa: DTZ001 - clocks without a zone, as most tables have them
AFTER_ALL = datetime(2026, 1, 1, tzinfo=UTC)


def orders(rows: int = ROWS, **columns: Any) -> pl.DataFrame:
    """Orders over thirty days of 2025, `returned` being learnable from `amount`; further columns as given, None takes one away."""
    random = np.random.default_rng(7)
    seconds = np.sort(random.integers(0, DAYS * 86_400, rows))
    amount = random.gamma(2.0, 40.0, rows)
    shops = ["north'", "süd--", "", None]
    given: dict[str, Any] = {
        "id": [f"C-{at:05}" for at in random.permutation(rows)],
        "at": [START + timedelta(seconds=int(second)) for second in seconds],
        "amount": [
            None if lost else float(value) for value, lost in zip(amount, random.random(rows) < 0.1, strict=True)
        ],
        "items": random.integers(1, 9, rows),
        "shop": [shops[at] for at in random.integers(0, len(shops), rows)],
        "returned": (amount > 80) ^ (random.random(rows) < 0.1),
        **columns,
    }
    return pl.DataFrame({name: values for name, values in given.items() if values is not None}, strict=False)


def proposed(
    file: Path, table: str | None = None, now: datetime = AFTER_ALL, **asked: Any
) -> tuple[Proposal, dict[str, str]]:
    """What is proposed for a file before its past is asked, and the files of a pipeline `orders` in the same folder."""
    with survey(locate(str(file), table), asked.get("timezone", "UTC")) as seen:
        proposal = propose(seen, Asked(now, **asked))
        past = past_of(seen, proposal)
        proposal = proposal if past is None else that_runs(proposal, past, now)
        reading = layout(seen, proposal)
    return proposal, files_of("orders", proposal, reading)


def proposed_for(table: pl.DataFrame, folder: Path, **asked: Any) -> tuple[Proposal, dict[str, str]]:
    """What is proposed for a table in a Parquet file of a folder."""
    table.write_parquet(folder / "table.parquet")
    return proposed(folder / "table.parquet", **asked)


def pipeline_of(files: dict[str, str], folder: Path) -> Pipeline:
    for name, text in files.items():
        (folder / name).write_bytes(text.encode())
    spec = PipelineSpec.model_validate(yaml.safe_load(files["defs.yaml"])["attributes"])
    return Pipeline(spec, folder, Home(folder / "home").create())


def names(columns: tuple[Any, ...]) -> list[str]:
    return [column.name for column in columns]


HOURS = 24 * 45


def customers(rows: int = 600, **columns: Any) -> pl.DataFrame:
    """Customers without a date, of whom the last ones have not decided yet."""
    random = np.random.default_rng(3)
    months, plan = random.integers(1, 70, rows), random.integers(0, 3, rows)
    left = (months < 20) ^ (random.random(rows) < 0.15)
    given: dict[str, Any] = {
        "plan": [["basic", "plus", "pro"][at] for at in plan],
        "months": months,
        "spend": random.gamma(2.0, 30.0, rows).round(2),
        "left": [bool(value) if at < rows - 50 else None for at, value in enumerate(left)],
        **columns,
    }
    return pl.DataFrame(given, strict=False)


def readings(hours: int = HOURS, first: datetime = START) -> pl.DataFrame:
    """One reading of a sensor an hour, with a daily rhythm and a slow drift."""
    at = [first + timedelta(hours=hour) for hour in range(hours)]
    random = np.random.default_rng(5)
    level = [
        10 + 5 * np.sin(2 * np.pi * when.hour / 24) + (when - START).days / 20 + noise
        for when, noise in zip(at, random.normal(0, 0.5, hours), strict=True)
    ]
    return pl.DataFrame({"at": at, "level": level})


def declared(files: dict[str, str]) -> dict[str, Any]:
    return yaml.safe_load(files["defs.yaml"])["attributes"]


def unlabelled(table: pl.DataFrame, column: str, rows: int, *, strays: int = 0, lost: float = 0.0) -> pl.DataFrame:
    """A table without labels in its last rows, but for a few, and without a share of all labels."""
    missing = np.random.default_rng(8).random(table.height) < lost
    missing[table.height - rows :] = True
    missing[table.height - rows // 2 : table.height - rows // 2 + strays] = False
    return table.with_columns(pl.when(pl.Series(missing)).then(None).otherwise(pl.col(column)).alias(column))


def built(pipeline: Pipeline, instants: Collection[datetime]) -> pl.DataFrame:
    """The features of all partitions around some instants, by id."""
    calendar = pipeline.spec.partitions.calendar
    longest = LONGEST[calendar.every].nominal + timedelta(days=1)
    partitions = calendar.within(min(instants) - longest, max(instants) + longest)
    with pipeline.builder.session() as session:
        files = [session.write(partition, pipeline.folder / "built").path for partition in partitions]
    return pl.concat(pl.read_parquet(file) for file in files).sort("id")
