"""A store of objects, for the tests of sources in it."""

from batch_platform_tests.harness.object_store import own_store, shared_store, store  # noqa: F401 - fixtures
