"""The training loop, its settings and its run folder."""
