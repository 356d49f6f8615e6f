"""What holds for all tests: none fails for being slow, and none sees the modules of another one's project."""

import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

from batch_platform_tests.dagster_project import PACKAGE

settings.register_profile("any_machine", deadline=None)
settings.load_profile("any_machine")


@pytest.fixture(autouse=True)
def no_project_of_another_test() -> Iterator[None]:
    """Every project on disk is a package of one name: forget where the last one lay."""
    path = list(sys.path)
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]
    yield
    sys.path[:] = path
