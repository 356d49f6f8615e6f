"""The tiers of the tests: which tests each of them runs, and how many examples hypothesis draws for a test."""

from typing import Any

from hypothesis import settings

EVERYDAY, UNIT = "not full", "unit and not full"  # marks of the tests of a tier, as pytest's -m
TIERS = {"--full": [], "--unit": ["-m", UNIT]}  # pytest's arguments by the option that names a tier
PROFILES = {"full": 100, "everyday": 20}  # percent of the examples that a test asks for


def examples(number: int, **options: Any) -> settings:
    """Settings of a test that draws so many examples in the full tier and a fifth of them, at least three, in the others."""
    return settings(max_examples=max(number * settings().max_examples // PROFILES["full"], 3), **options)
