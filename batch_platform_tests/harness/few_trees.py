"""A fixture that lets proposals be made fast."""

import pytest

from batch_platform.proposal import trial
from batch_platform.proposal.choices import PARAMS


@pytest.fixture
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let proposed models have few trees that learn fast, and be tried once: what these tests look at does not depend on them."""
    monkeypatch.setattr(trial, "FOLDS", 1)
    for target in ("classes", "numbers"):
        monkeypatch.setitem(PARAMS[target], "max_iter", 10)
        monkeypatch.setitem(PARAMS[target], "learning_rate", 0.4)
