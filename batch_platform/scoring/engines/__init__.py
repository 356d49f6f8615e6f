"""Engines: an engine takes orders to score partitions, and stages the results in files.

Start with `known.py`, the contract of an engine, then `local.py`, which scores on the threads of this process.
"""
