"""Where everything lies under BATCH_PLATFORM_HOME; the only place that knows paths.

It creates folders and nothing else, and knows nothing of what the files hold.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from batch_platform.errors import BatchPlatformError

HOME_VARIABLE = "BATCH_PLATFORM_HOME"
DEFAULT_HOME = ".batch_platform"


@dataclass(frozen=True)
class Home:
    """The root of one installation's data.

    Args:
        root: An absolute path.
    """

    root: Path

    @classmethod
    def from_environment(cls, folder: Path | None = None) -> "Home":
        """The home that BATCH_PLATFORM_HOME names, else `.batch_platform` in a folder (default: the current one)."""
        named = os.environ.get(HOME_VARIABLE)
        return cls(Path(named).expanduser().absolute() if named else (folder or Path.cwd()).absolute() / DEFAULT_HOME)

    def create(self) -> "Home":
        """Make the folders that are missing.

        Raises:
            BatchPlatformError: The root cannot be written to.
        """
        try:
            for folder in (self.root, self.lake, self.models, self.staging, self.dagster):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            msg = f"The home {self.root} cannot be written to ({error.strerror})."
            raise BatchPlatformError(msg, hint=f"set {HOME_VARIABLE} to a folder of yours.") from error
        if not os.access(self.root, os.W_OK):
            msg = f"The home {self.root} cannot be written to (permission denied)."
            raise BatchPlatformError(msg, hint=f"set {HOME_VARIABLE} to a folder of yours.")
        return self

    @property
    def warehouse(self) -> Path:
        """The live DuckDB file; only `warehouse.py` opens it."""
        return self.root / "warehouse.duckdb"

    @property
    def warehouse_lock(self) -> Path:
        """The file whose flock serialises all use of the warehouse."""
        return self.root / "warehouse.lock"

    @property
    def published(self) -> Path:
        """The link that readers open."""
        return self.root / "published.duckdb"

    @property
    def lake(self) -> Path:
        """Parquet files of features."""
        return self.root / "lake"

    @property
    def models(self) -> Path:
        """Bundles by pipeline and version."""
        return self.root / "models"

    @property
    def staging(self) -> Path:
        """Scored batches on their way; one folder per run."""
        return self.root / "staging"

    @property
    def dagster(self) -> Path:
        """DAGSTER_HOME."""
        return self.root / "dagster"

    def features(self, pipeline: str, partition_key: str) -> Path:
        """The features of one partition."""
        return self.lake / pipeline / "features" / f"{partition_key}.parquet"

    def bundle(self, pipeline: str, version: str) -> Path:
        """The folder of one trained version."""
        return self.models / pipeline / version
