"""The number of examples that hypothesis draws for a test, which depends on the tier."""

from typing import Any

from hypothesis import settings

PROFILES = {"full": 100, "everyday": 20}  # percent of the examples that a test asks for


def examples(number: int, **options: Any) -> settings:
    """Settings of a test that draws so many examples in the full tier and a fifth of them, at least three, in the others."""
    return settings(max_examples=max(number * settings().max_examples // PROFILES["full"], 3), **options)
