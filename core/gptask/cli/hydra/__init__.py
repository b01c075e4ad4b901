"""Hydra: compose, validate, run a job, word its errors."""
