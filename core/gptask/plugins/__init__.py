"""The contract of task plugins and their discovery; imports no torch."""
