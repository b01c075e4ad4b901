"""From files to batches: reading, columns, examples, corpus, cache, data module."""
