"""Apache Spark: its sessions and jobs, which the engine that scores uses too, and features that its SQL makes.

Imports `declaration`, `warehouse` and the rest of `features`. Start with `session.py` (how Spark starts), then `build.py` (a partition of
features); `task.py` is all that an executor runs for it.
"""
