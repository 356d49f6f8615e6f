"""Trained models: the contract of their columns, fitting, the bundle on disk, the registry and who serves when.

Imports `declaration`, `warehouse`, `monitoring` and `features`. Start with `registry.py` (the rule that picks a champion), then
`bundle.py` (a model on disk), `contract.py` (what it is given), `flavours/` (one module per kind) and `forest/` (compiled trees).
"""
