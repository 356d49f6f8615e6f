"""What Dagster loads: every pipeline below `defs/`, from a checkout and from an installed wheel alike."""

from pathlib import Path

import dagster as dg
from dagster._utils.warnings import suppress_dagster_warnings

from batch_platform import defs as shipped


@dg.definitions
@suppress_dagster_warnings  # as `dg.load_from_defs_folder` has it, which looks for a pyproject.toml that a wheel lacks
def defs() -> dg.Definitions:
    """The shipped pipelines."""
    return dg.ComponentTree.from_module(defs_module=shipped, project_root=Path(__file__).parents[1]).build_defs()
