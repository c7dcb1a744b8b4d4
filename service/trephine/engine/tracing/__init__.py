"""Edges looked at one by one: their ends, their paths through heads, and how a score comes about."""
