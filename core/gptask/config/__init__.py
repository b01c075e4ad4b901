"""What every option is, and the grammar of overrides; no torch at import."""
