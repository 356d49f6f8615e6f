"""The pipelines that ship with the project: one folder each. The flights are always there, the demos once they are asked for."""
