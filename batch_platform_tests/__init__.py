"""Tests of batch_platform; modules are named after what they test."""
