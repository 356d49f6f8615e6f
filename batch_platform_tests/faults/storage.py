"""Disks that are full, files that are damaged, memory that is short."""

from batch_platform_tests.faults import Case

CASES: dict[str, Case] = {}
