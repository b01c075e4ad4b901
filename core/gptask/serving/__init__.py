"""One process, one backbone, many runs: requests over HTTP, computed together in batches."""
