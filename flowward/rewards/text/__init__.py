"""Rewards on the text in an image."""
