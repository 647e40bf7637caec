"""Measuring models: scores with intervals, comparisons, and what a number depends on."""
