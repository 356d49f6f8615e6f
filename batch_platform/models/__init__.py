"""Trained models: bundles on disk, and one module for each flavour with `save` and `load`."""
