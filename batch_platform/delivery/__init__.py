"""Deliveries: a partition of predictions written to files or a table of somebody else, wholly or not at all.

Imports `declaration`, `warehouse`, and how `sources` opens databases and stores. Start with `sink.py` (what a kind of
sink must offer) and `known.py` (the kinds by name). To add a kind, write its module, and name it in
`declaration/extensions.py`.
"""
