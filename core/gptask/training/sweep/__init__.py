"""Search for the options that do best on validation, with Optuna."""
