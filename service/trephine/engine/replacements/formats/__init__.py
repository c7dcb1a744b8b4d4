"""Readers of replacement sets, one module a format."""
