"""Definitions that Dagster loads: every pipeline below `defs/`, from a checkout and from an installed wheel alike."""

from pathlib import Path

import dagster as dg

from batch_platform import defs as shipped


@dg.definitions
def defs() -> dg.Definitions:
    """Load the shipped pipelines; `dg.load_from_defs_folder` needs a pyproject.toml, which a wheel lacks.

    The steps of a run work in the process of the run: starting a process takes longer than most partitions.
    """
    from batch_platform.components.dagster_internals import without_beta_warnings

    with without_beta_warnings():
        tree = dg.ComponentTree.from_module(defs_module=shipped, project_root=Path(__file__).parents[1])
        return dg.Definitions.merge(tree.build_defs(), dg.Definitions(executor=dg.in_process_executor))
