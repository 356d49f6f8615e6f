"""The `batch-platform` command."""

from batch_platform.cli.app import main

__all__ = ["main"]
