"""Rewards for the look of an image."""
