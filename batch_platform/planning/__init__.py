"""The plan of what is due: one rule for every artifact, and the holds that keep it from being made.

Start with `artifacts.py` (an artifact is due where an input that it was made from differs), then `holds.py` (what it waits for),
`trainings.py` (which models) and `plan.py` (all steps in order). Pure functions of the declaration, a state and a request.
"""
