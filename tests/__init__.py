"""Tests of the project, and what they share: `from tests import tiny_model`."""
