"""Smaller runs from finished ones, each compared with the run it comes from."""
