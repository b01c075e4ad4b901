"""A run folder: written, read, loaded, predicted with, exported."""
