"""Tests of `declaration`."""
