"""Fixtures of the tests of proposals."""

from batch_platform_tests.harness.few_trees import few_trees  # noqa: F401 - a fixture
