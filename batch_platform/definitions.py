"""What Dagster loads: every pipeline below `defs/`, from a checkout and from an installed wheel alike."""

from pathlib import Path

import dagster as dg

from batch_platform import defs as shipped


@dg.definitions
def defs() -> dg.Definitions:
    """Load the shipped pipelines; `dg.load_from_defs_folder` needs a pyproject.toml, which a wheel lacks."""
    from batch_platform.components.dagster_internals import without_beta_warnings

    with without_beta_warnings():
        return dg.ComponentTree.from_module(defs_module=shipped, project_root=Path(__file__).parents[1]).build_defs()
