"""A report on finished runs: one HTML page that needs nothing but a browser."""
