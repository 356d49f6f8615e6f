"""The `batch-platform` command.

Imports every room, and heavy ones only once a command needs them. Start with `app.py`.
"""

from batch_platform.cli.app import main, process

__all__ = ["main", "process"]
