"""Dagster's side of the project: the component, and thin wiring round `pipeline.py`."""

from batch_platform.components.batch_inference import BatchInference

__all__ = ["BatchInference"]
