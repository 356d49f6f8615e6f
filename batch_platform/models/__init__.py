"""Trained models: the contract of their columns, fitting, bundles on disk, the registry, the gate and decisions of people.

Imports the rooms up to `features`. Start with `registry.py` (the rule that picks a champion), then `bundle.py` (a model on disk),
`contract.py` (what it takes and returns) and `flavours/` (one module per kind).
"""
