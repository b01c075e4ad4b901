"""From files to batches: reading, columns, corpus, store, module."""
