"""Rewards on the objects in an image (GenEval)."""
