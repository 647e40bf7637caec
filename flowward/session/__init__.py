"""Training from Python in one call: flowward.fit, and what it returns."""
