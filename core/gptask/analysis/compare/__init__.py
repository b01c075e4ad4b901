"""Comparing finished runs: what they left in their folders, paired tests, tables."""
