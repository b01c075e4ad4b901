"""The thread that computes, and what waits for it."""
