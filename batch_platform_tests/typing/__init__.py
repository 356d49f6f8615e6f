"""Uses of the public API that pyright checks strictly, and a test that the API holds what it names."""
