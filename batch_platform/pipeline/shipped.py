"""The pipelines that ship with the project, below `defs/`: the flights are always loaded, the demos once they are asked for."""

import os
from pathlib import Path

from batch_platform.warehouse.home import Home

FOLDER = Path(__file__).parents[1] / "defs"
MODULE = "batch_platform.defs"
FLIGHTS = "flight_delays"
ALL = "all"
DEMOS_VARIABLE = "BATCH_PLATFORM_DEMOS"  # names of demos, separated by commas, or `all`; child processes load the same


def shipped() -> list[str]:
    """Names of the shipped pipelines, the flights first."""
    names = sorted(path.parent.name for path in FOLDER.glob("*/defs.yaml"))
    return sorted(names, key=lambda name: name != FLIGHTS)


def ask_for(name: str) -> None:
    """Load a demo, or `all`, in this process and in the processes that it starts."""
    if name != FLIGHTS and name in (ALL, *shipped()):
        os.environ[DEMOS_VARIABLE] = ",".join(sorted({name, *_asked()}))


def to_load(home: Home) -> list[Path]:
    """Folders of the shipped pipelines to load: the flights, the demos that are asked for, and those that ran in the home."""
    asked = _asked()
    return [
        FOLDER / name
        for name in shipped()
        if name == FLIGHTS or not asked.isdisjoint({name, ALL}) or (home.lake / name).is_dir()
    ]


def _asked() -> set[str]:
    return set(filter(None, os.environ.get(DEMOS_VARIABLE, "").split(",")))
