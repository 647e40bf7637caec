"""Measuring models: scores with confidence intervals, comparisons, and the settings that a score depends on."""
