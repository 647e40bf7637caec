"""Rewards for the objects in an image (GenEval)."""
