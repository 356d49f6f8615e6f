"""The `batch-platform` command."""

from batch_platform.cli.app import main, process

__all__ = ["main", "process"]
