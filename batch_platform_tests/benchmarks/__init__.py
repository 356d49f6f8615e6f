"""Measurements against peers, each in the same run: ratios, not absolute times.

`python -m batch_platform_tests.benchmarks` has the workloads; `full_year` is the whole year of flights, training included.
"""
