"""Rewards that look at a whole video: its motion, its first and last frame, and how steady its content is."""
