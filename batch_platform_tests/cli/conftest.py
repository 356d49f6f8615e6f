"""Fixtures of the tests of the command line."""

from batch_platform_tests.harness.few_trees import few_trees  # noqa: F401 - a fixture
