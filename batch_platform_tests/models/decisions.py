"""Versions of a model and decisions about them."""

from datetime import UTC, datetime, timedelta

from batch_platform.models.registry import Promotion, Version

START = datetime(2024, 1, 1, tzinfo=UTC)


def version(name: str, serves_from: int, seq: int = 1) -> Version:
    start = START + timedelta(days=serves_from)
    return Version(
        pipeline="small",
        version=name,
        serving_period=f"{start:%Y-%m-%d}",
        serving_start=start,
        sha256="ab",
        flavour="sklearn",
        task="binary",
        estimator="e",
        params='{"max_iter": 5}',
        trained_from=START,
        trained_until=start,
        rows_trained=10,
        rows_evaluated=5,
        metrics='{"roc_auc": 0.75}',
        features_code_version="f",
        created_at=START,
        run_id="run",
        classes="[false, true]",
        seq=seq,
    )


def decision(name: str, action: str, seq: int = 1) -> Promotion:
    return Promotion("small", name, action, "because", "{}", "gate", START, "run", seq)


def at(days: int) -> datetime:
    return START + timedelta(days=days)
