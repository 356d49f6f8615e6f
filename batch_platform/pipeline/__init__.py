"""The steps of one pipeline, and the questions asked of it; what a notebook could call.

Imports the rooms up to `planning`, which says what is due. Start with `pipeline.py` (the steps).
"""
