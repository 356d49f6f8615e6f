"""A Dagster project over the generated table, prepared by its own commands; every measured run gets a copy of its home.

Prepared means: the features of all days are built, the model is trained, and no measured day is scored. The fitted
estimator is exported from here, so that peers use the same one.
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from batch_platform.warehouse.home import HOME_VARIABLE, Home
from batch_platform_tests.benchmarks.data import NUMBERS, TEXTS, Days
from batch_platform_tests.benchmarks.measuring import COMMAND, Cost, run

PACKAGE = "benchmark"
PYPROJECT = f'[project]\nname = "{PACKAGE}"\nversion = "0"\n\n[tool.dg]\ndirectory_type = "project"\n\n[tool.dg.project]\nroot_module = "{PACKAGE}"\n'
DEFINITIONS = """\
from pathlib import Path

import dagster as dg


@dg.definitions
def defs():
    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
"""
IN_ONE_PROCESS = """\
from pathlib import Path

import dagster as dg


@dg.definitions
def defs():
    loaded = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
    return dg.Definitions.merge(loaded, dg.Definitions(executor=dg.in_process_executor))
"""
ESTIMATORS = """\
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def linear():
    return make_pipeline(StandardScaler(), LogisticRegression())
"""
WINDOW = "ts >= $partition_start AND ts < $partition_end"
HISTOGRAM_TREES = {
    "estimator": "sklearn.ensemble.HistGradientBoostingClassifier",
    "params": {"max_iter": 100, "max_leaf_nodes": 31, "early_stopping": False},
}


@dataclass(frozen=True)
class Kind:
    """One kind of model."""

    model: dict[str, Any]
    features: list[str]
    tolerance: float  # maximum absolute difference between the scores of contenders


KINDS = {
    "trees": Kind(HISTOGRAM_TREES, NUMBERS, 0.0),
    "linear": Kind({"build": f"{PACKAGE}.estimators.linear"}, NUMBERS, 1e-9),
    "forest": Kind(
        {"estimator": "sklearn.ensemble.RandomForestClassifier", "params": {"n_estimators": 100, "max_depth": 10}},
        NUMBERS,
        1e-12,  # scikit-learn on several threads adds the trees up in the order in which they come
    ),
    "categorical": Kind(HISTOGRAM_TREES, [*NUMBERS[: len(NUMBERS) - len(TEXTS)], *TEXTS], 0.0),
}


@dataclass(frozen=True)
class Project:
    """A Dagster project with one pipeline, and a home in which it is prepared.

    Args:
        root: Folder of the project.
        pipeline: Name of the pipeline.
        command: Start of the command line of the package that serves it.
        variables: Environment that this package needs.
    """

    root: Path
    pipeline: str
    command: Sequence[str] = (COMMAND,)
    variables: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def ready(self) -> Home:
        """The prepared home. Measured runs get a copy of it."""
        return Home(self.root / "ready")

    @property
    def folder(self) -> Path:
        """Folder of the pipeline's YAML and SQL."""
        return self.root / PACKAGE / "defs" / self.pipeline

    def write(self, attributes: dict[str, Any], files: dict[str, str]) -> None:
        """Write the project with one pipeline."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.root / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")
        package = self.root / PACKAGE
        for init in (package, package / "defs"):
            (init / "__init__.py").touch()
        (package / "definitions.py").write_text(DEFINITIONS, encoding="utf-8")
        (package / "in_one_process.py").write_text(IN_ONE_PROCESS, encoding="utf-8")
        (package / "estimators.py").write_text(ESTIMATORS, encoding="utf-8")
        for name, text in files.items():
            (self.folder / name).write_text(text, encoding="utf-8")
        self.declare(attributes)

    def declare(self, attributes: dict[str, Any]) -> None:
        """Write the pipeline's YAML; replaces an earlier one."""
        declared = {"type": "batch_platform.components.BatchInference", "attributes": attributes}
        (self.folder / "defs.yaml").write_text(yaml.safe_dump(declared, sort_keys=False), encoding="utf-8")

    def run(self, home: Home, *options: str) -> Cost:
        """Run `batch-platform run` as a process."""
        return self.command_on(home, "run", "--json", *options)

    def command_on(self, home: Home, name: str, *options: str) -> Cost:
        """Run a command on the pipeline as a process."""
        command = [*self.command, name, self.pipeline, *options]
        return run(command, self.root, **self.variables, **{HOME_VARIABLE: str(home.root)})

    def materialize(self, home: Home, asset: str, first: str, last: str) -> Cost:
        """Materialize one asset over a range with Dagster's own command, in one process, as this project's jobs work."""
        if not home.root.exists():
            home.create()
        command = [str(Path(sys.executable).with_name("dagster")), "asset", "materialize"]
        command += ["--select", f"key:{self.pipeline}/{asset}", "-m", f"{PACKAGE}.in_one_process", "-d", str(self.root)]
        command += ["--partition-range", f"{first}...{last}"]
        homes = {HOME_VARIABLE: str(home.root), "DAGSTER_HOME": str(home.dagster)}
        return run(command, self.root, **self.variables, **homes)

    def copy_ready(self, folder: Path) -> Home:
        """Copy the prepared home to another folder on the same disk.

        Feature files and bundles are hard links, because nothing writes into them; their modification times stay.
        """
        folder.mkdir(parents=True)
        for entry in self.ready.root.iterdir():
            if entry in (self.ready.lake, self.ready.models):
                shutil.copytree(entry, folder / entry.name, copy_function=os.link)
            elif entry.is_dir():
                shutil.copytree(entry, folder / entry.name, symlinks=True)
            else:
                shutil.copy2(entry, folder / entry.name, follow_symlinks=False)
        return Home(folder)

    def export_model(self, path: Path) -> Path:
        """Write a fitted estimator for peers, with the columns it reads and the categories it knows."""
        import joblib
        from skops import io

        from batch_platform.models.flavours.sklearn import MODEL_FILE, TRUSTED_TYPES

        bundle = min((self.ready.models / self.pipeline).iterdir())
        contract = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["contract"]
        served = {
            "estimator": io.load(bundle / MODEL_FILE, trusted=list(TRUSTED_TYPES)),
            "names": [column["name"] for column in contract],
            "categories": {c["name"]: list(c["categories"]) for c in contract if c["type"] == "category"},
        }
        joblib.dump(served, path)
        return path


def generated_project(root: Path, kind: str, data: Path, days: Days, **package: Any) -> Project:
    """Write a project with one kind of model over the generated table. Runs nothing.

    `package` is what `Project` knows of the package that serves it.
    """
    project = Project(root, kind, **package)
    columns = ", ".join(["id", "ts", *KINDS[kind].features])
    attributes = {
        "name": kind,
        "partitions": {"every": "day", "start": days.training[0].isoformat(), "timezone": "UTC"},
        "sources": {
            "events": {"parquet": f"{data}/{{partition_key}}.parquet"},
            "labels": {"parquet": f"{data}/labels.parquet"},
        },
        "features": {"sql": "features.sql", "key": ["id"], "time": "ts"},
        "labels": {"sql": "labels.sql", "column": "label", "delay": f"{days.delay.days} days"},
        "model": {**KINDS[kind].model, "train": {"evaluate": f"{days.evaluated} days"}},
    }
    project.write(
        attributes,
        {
            "features.sql": f"SELECT {columns}\nFROM events\nWHERE {WINDOW}\n",
            "labels.sql": f"SELECT id, label\nFROM labels\nWHERE {WINDOW}\n",
        },
    )
    return project


def make_ready(project: Project, days: Days) -> None:
    """Train the model, score its first day, and build the features of the measured days."""
    project.run(project.ready, "--partition", days.first.isoformat())
    project.materialize(project.ready, "features", days.keys[0], days.keys[-1])
