"""Models that are not what was trained."""

from batch_platform_tests.faults import Case

CASES: dict[str, Case] = {}
