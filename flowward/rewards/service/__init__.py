"""Rewards over HTTP: the server, its client, and what they say to each other."""
