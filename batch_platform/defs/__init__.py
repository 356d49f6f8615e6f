"""The pipelines that ship with the project: one folder each."""
