"""The tiers of the tests: which tests each of them runs, and how many examples hypothesis draws for a test."""

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest
from hypothesis import settings

CI = "not release"  # marks of the tests of a tier, as pytest's -m
EVERYDAY = f"not full and {CI}"
UNIT = f"unit and {EVERYDAY}"
TIERS = {
    "--unit": ["-m", UNIT],
    "--full": ["-m", CI],
    "--release": [],
}  # pytest's arguments by the option that names a tier
FULL = pytest.mark.full
PROFILES = {"release": 100, CI: 40, EVERYDAY: 20, UNIT: 20}  # percent of the examples that a test asks for, by tier


def crossed(*axes: Iterable[Any]) -> list[Any]:
    """The parameters of every combination; the everyday tier takes those in which each value of each axis occurs."""
    values = [list(axis) for axis in axes]
    everyday = {tuple(at % len(axis) for axis in values) for at in range(max(map(len, values)))}
    return [
        pytest.param(
            *(axis[at] for axis, at in zip(values, places, strict=True)), marks=() if places in everyday else FULL
        )
        for places in product(*(range(len(axis)) for axis in values))
    ]


def examples(number: int, **options: Any) -> settings:
    """Settings of a test that draws so many examples before a release and a part of them, at least three, in the other tiers."""
    return settings(max_examples=max(number * settings().max_examples // PROFILES["release"], 3), **options)
