"""The schema of every option and the grammar of overrides; imports no torch."""
