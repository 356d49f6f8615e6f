"""Definitions that Dagster loads: the shipped pipelines below `defs/`, from a checkout and from an installed wheel alike."""

from pathlib import Path

import dagster as dg

from batch_platform import defs as defs_module
from batch_platform.pipeline.shipped import FOLDER, shipped, to_load
from batch_platform.warehouse.home import Home


@dg.definitions
def defs() -> dg.Definitions:
    """Load the flights and the demos asked for; `dg.load_from_defs_folder` needs a pyproject.toml, which a wheel lacks.

    The steps of a run work in the process of the run: starting a process takes longer than most partitions.
    """
    from batch_platform.components.broken import unreadable_left_out, without_folders
    from batch_platform.components.dagster_internals import without_beta_warnings

    unasked = {*map(FOLDER.joinpath, shipped())} - {*to_load(Home.from_environment())}
    with without_beta_warnings(), without_folders(unasked), unreadable_left_out():
        tree = dg.ComponentTree.from_module(defs_module=defs_module, project_root=Path(__file__).parents[1])
        return dg.Definitions.merge(tree.build_defs(), dg.Definitions(executor=dg.in_process_executor))
