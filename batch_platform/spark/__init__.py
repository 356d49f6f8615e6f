"""Apache Spark: its sessions and jobs, features that its SQL makes, and the engine that scores on its executors.

May import `scoring` and every room below; `features` and `scoring` find it by name. Start with `session.py` (how Spark starts), then
`features.py` and `scoring.py`; `staging.py` and `scoring_tasks.py` are all that an executor runs.
"""
