"""A pipeline as declared: YAML blocks, names, durations, the calendar of partitions, serving periods, and errors.

Imports no other room. Start with `spec.py` (the YAML as a model), then `calendar.py` (what a partition is).
"""
