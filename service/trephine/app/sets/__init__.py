"""Replacement sets: loaded, fitted, measured."""
