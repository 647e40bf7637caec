"""The training loop, its settings, its metrics and its run folder."""
