"""Hydra configs of gptask: one primary config per verb, and its groups."""
