"""Hydra: compose and validate a config, run its jobs, translate its errors."""
