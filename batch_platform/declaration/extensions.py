"""The extensions of each group by name: those of this package, those that a project registers, and those of other distributions.

To add one to the package, write it in its room and name it here. The room says what an implementation must offer.
"""

from collections.abc import Iterator, Mapping, MutableMapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pkgutil import resolve_name
from typing import Any, TypeVar

from batch_platform.declaration.errors import WrongUseError

Extension = TypeVar("Extension")


class Registry(MutableMapping[str, Extension]):
    """The extensions of one group by name; each is imported when it is first looked up, and not when its name is.

    Own ones come first, in their order, then those of other distributions' entry points, then registered ones. Raises
    WrongUseError for an entry point that cannot be used.
    """

    def __init__(self, group: str, base: str, own: Mapping[str, str], *, of_classes: bool = False) -> None:
        """Describe a group: the path of the class that its extensions derive from or are made of, and the paths of its own."""
        self.group, self.own = f"batch_platform.{group}", own
        self._base, self._of_classes = base, of_classes
        self._loaded = dict[str, Extension]()

    def register(self, name: str, extension: Extension) -> None:
        """Add an extension, or put it in the place of another one, before the pipelines are loaded."""
        self._loaded[name] = extension

    __setitem__ = register

    def __getitem__(self, name: str) -> Extension:
        """Return an extension, which is imported if it was not yet."""
        if name not in self._loaded:
            self._loaded[name] = resolve_name(self.own[name]) if name in self.own else self._load(self._declared[name])
        return self._loaded[name]

    def __delitem__(self, name: str) -> None:
        """Forget what was registered."""
        del self._loaded[name]

    def __contains__(self, name: object) -> bool:
        """Tell whether there is an extension of that name."""
        return name in self.own or name in self._loaded or name in self._declared

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(dict.fromkeys([*self.own, *self._declared, *self._loaded]))

    def __len__(self) -> int:
        """Return the number of names."""
        return sum(1 for _ in self)

    @property
    def _declared(self) -> Mapping[str, EntryPoint]:
        declared = dict[str, EntryPoint]()
        for entry_point in _entry_points().select(group=self.group):
            if entry_point.name in (*self.own, *declared):
                raise _unusable(entry_point, "has the name of another one")
            declared[entry_point.name] = entry_point
        return declared

    def _load(self, entry_point: EntryPoint) -> Extension:
        try:
            extension = entry_point.load()
        except Exception as error:  # somebody else's module may raise anything
            raise _unusable(entry_point, f"cannot be loaded ({type(error).__name__}: {error})") from error
        if not self._fits(extension):
            kind = self._base.rpartition(":")[2]
            raise _unusable(entry_point, f"is not {'a class' if self._of_classes else 'an object'} of the kind {kind}")
        return extension

    def _fits(self, extension: object) -> bool:
        base = resolve_name(self._base)
        return (
            isinstance(extension, type) and issubclass(extension, base)
            if self._of_classes
            else isinstance(extension, base)
        )


@cache
def _entry_points() -> Any:  # noqa: ANN401 - its type depends on the version of Python
    """The entry points of all installed distributions, whose metadata are read once."""
    return entry_points()


def _unusable(entry_point: EntryPoint, problem: str) -> WrongUseError:
    name = entry_point.dist.name if entry_point.dist else "unknown"
    msg = f"The distribution {name!r} declares {entry_point.name} = {entry_point.value!r} in the group {entry_point.group}, which {problem}."
    return WrongUseError(msg, hint=f"correct or upgrade {name}, or pip uninstall {name}.")


_FILES, _DELIVERED = "batch_platform.sources.files", "batch_platform.delivery.files"
_MEASURES, _METRICS = "batch_platform.monitoring.measures", "batch_platform.monitoring.metrics"

SOURCES: Registry[Any] = Registry(
    "sources",
    "batch_platform.sources.kind:SourceKind",
    {
        "python": "batch_platform.sources.known:PYTHON",
        "parquet": f"{_FILES}:PARQUET",
        "csv": "batch_platform.sources.text_files:CSV",
        "json": "batch_platform.sources.text_files:JSON",
        "arrow": f"{_FILES}:ARROW",
        "duckdb": "batch_platform.sources.duckdb:DUCKDB",
        "delta": "batch_platform.sources.delta:DELTA",
        "iceberg": "batch_platform.sources.iceberg:ICEBERG",
        "sql": "batch_platform.sources.sql:SQL",
        "spark_table": "batch_platform.sources.known:SPARK_TABLE",
        "asset": "batch_platform.sources.duckdb:ASSET",  # beside another kind, it names the writer of what is read there
    },
)
FLAVOURS: Registry[Any] = Registry(
    "flavours",
    "batch_platform.models.flavours.flavour:Flavour",
    {
        name: f"batch_platform.models.flavours.{name}:FLAVOUR"
        for name in ("sklearn", "onnx", "lightgbm", "xgboost", "keras", "mlflow", "python")
    },
)
# Scored measures are replaced in this order: drift reads the profiles.
MEASURES: Registry[Any] = Registry(
    "measures",
    "batch_platform.monitoring.measure:Measure",
    {
        "rejections": f"{_MEASURES}.scored:REJECTIONS",
        "rejected_share": f"{_MEASURES}.health:REJECTED_SHARE",
        "volume": f"{_MEASURES}.health:VOLUME",
        "feature_rows": f"{_MEASURES}.rows:FEATURE_ROWS",
        "scores": f"{_MEASURES}.scored:SCORES",
        "champion_age": f"{_MEASURES}.health:CHAMPION_AGE",
        "challengers": f"{_MEASURES}.challengers:CHALLENGERS",
        "profiles": f"{_MEASURES}.scored:PROFILES",
        "estimates": f"{_MEASURES}.estimates:ESTIMATES",
        "drift": f"{_MEASURES}.drift:DRIFT",
        "importance": f"{_MEASURES}.scored:IMPORTANCE",
        "performance": f"{_MEASURES}.performance:PERFORMANCE",
        "concept_drift": f"{_MEASURES}.evaluated:CONCEPT_DRIFT",
        "interval_coverage": f"{_MEASURES}.evaluated:INTERVAL_COVERAGE",
        "cluster_profiles": f"{_MEASURES}.evaluated:CLUSTER_PROFILES",
    },
)
METRICS: Registry[Any] = Registry(
    "metrics",
    f"{_METRICS}:Metric",
    {
        name: f"{_METRICS}:{name.upper()}"
        for name in (
            *("accuracy", "log_loss", "brier", "mae", "rmse", "r2", "silhouette", "outlier_share", "roc_auc"),
            *("precision", "recall", "f1"),
            *("decision_cost", "decision_cost_always", "decision_cost_never", "decision_cost_in_hindsight"),
            *("selection_rate", "false_positive_rate", "calibration_error", "average_precision", "ks"),
            *("lift_at_1", "lift_at_5", "lift_at_10", "bias", "mape", "error_p10", "error_p50", "error_p90"),
        )
    },
)
ENGINES: Registry[Any] = Registry(
    "engines",
    "batch_platform.scoring.engines.known:Engine",
    {"local": "batch_platform.scoring.engines.local:LocalEngine", "spark": "batch_platform.spark.scoring:SparkEngine"},
    of_classes=True,
)
SINKS: Registry[Any] = Registry(
    "sinks",
    "batch_platform.delivery.sink:Sink",
    {
        "parquet": f"{_DELIVERED}:PARQUET",
        "csv": f"{_DELIVERED}:CSV_FILES",
        "delta": f"{_DELIVERED}:DELTA",
        "iceberg": f"{_DELIVERED}:ICEBERG",
        "sql": "batch_platform.delivery.sql:SQL",
    },
)
