"""Rewards on the look of an image."""
