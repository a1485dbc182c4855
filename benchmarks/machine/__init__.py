"""Measures what depends on the machine rather than on the code."""
