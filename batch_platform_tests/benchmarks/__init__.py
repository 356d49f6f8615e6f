"""Measurements against peers, each in the same run: ratios, not absolute times."""
