"""Trained models: the contract of their columns, fitting, bundles on disk, the registry, the gate and decisions of people.

Imports `declaration`, `warehouse`, `monitoring` and `features`. Start with `registry.py` (the rule that picks a champion), then
`bundle.py` (a model on disk), `contract.py` (what it takes and returns), `flavours/` (one module per kind), `forest/` (compiled trees)
and `linear/` (linear models as plain numbers).
"""
