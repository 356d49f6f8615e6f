"""Runs, daemons and clocks that fail while partitions are worked on."""

from batch_platform_tests.faults import Case

CASES: dict[str, Case] = {}
