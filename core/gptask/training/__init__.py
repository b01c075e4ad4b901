"""One way through a run: build, fit, evaluate, sweep."""
