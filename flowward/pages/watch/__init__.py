"""Several runs on one page: curves laid over each other, followed while the runs go on, or as a static file."""
