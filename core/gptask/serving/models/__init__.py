"""Which runs are served, and the backbones in memory."""
