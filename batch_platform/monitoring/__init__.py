"""Measures of how well a model does, on plain arrays."""
