"""The package that `gptask new-task` writes: its name, its files and their templates."""
