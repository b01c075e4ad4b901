"""Cards: the README.md of a run folder."""
