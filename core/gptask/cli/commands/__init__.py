"""One module a verb, each with ``main(arguments)``, which returns the exit code."""
