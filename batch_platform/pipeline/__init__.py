"""The steps of one pipeline, and the questions asked of it; what a notebook could call.

Imports the rooms up to `delivery`. Start with `pipeline.py` (the steps), then `plan.py` (what is due).
"""
