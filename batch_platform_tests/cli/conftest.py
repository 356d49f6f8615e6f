"""Fixtures of the tests of the command line."""

import pytest

from batch_platform.cli.proposal.choices import PARAMS


@pytest.fixture
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let proposed models have few trees that learn fast: what is proposed for a table does not depend on them."""
    for target in ("classes", "numbers"):
        monkeypatch.setitem(PARAMS[target], "max_iter", 10)
        monkeypatch.setitem(PARAMS[target], "learning_rate", 0.4)
