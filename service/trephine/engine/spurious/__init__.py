"""Removing spurious features from a decision: heads, effects, judges, choice, and what comes of it."""
