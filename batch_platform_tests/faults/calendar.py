"""Days of other lengths, and labels that come late."""

from batch_platform_tests.faults import Case

CASES: dict[str, Case] = {}
