"""Spurious features removed: reports, edits made of them, what that costs."""
