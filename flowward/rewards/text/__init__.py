"""Rewards for the text in an image."""
