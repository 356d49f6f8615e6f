"""Dagster's side: the component, assets, checks, schedules, sensors and the IO manager; thin wiring around `pipeline`.

Imports every room but `cli`. Start with `batch_inference.py` (the component), then `assets.py`, and `ticks.py` (a schedule's tick).
"""

from batch_platform.components.batch_inference import BatchInference

__all__ = ["BatchInference"]
