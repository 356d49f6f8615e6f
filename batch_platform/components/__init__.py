"""The Dagster side: component, assets, checks, schedules and the IO manager, as thin wiring around `pipeline`.

Imports every room but `cli`. Start with `batch_inference.py` (the component), then `assets.py`, and `schedules.py` (what a tick does).
"""

from batch_platform.components.batch_inference import BatchInference, build_definitions
from batch_platform.components.broken import load_from_defs_folder

__all__ = ["BatchInference", "build_definitions", "load_from_defs_folder"]
