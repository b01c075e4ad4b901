"""What is done with finished runs: compare, report."""
