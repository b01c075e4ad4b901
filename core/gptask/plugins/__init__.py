"""The contract of a task plugin, and how plugins are found; no torch at import."""
